"""What to do where a model is named that is not there. No torch here."""

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from titan_pt.config.errors import ConfigError
from titan_pt.config.names import hub_download, meant_path
from titan_pt.config.resolve.layers import read_layers
from titan_pt.config.shipped import experiments

_MOST = 8


def no_run(path: str) -> str:
    """Why there is no model at a path that is no folder, and the command that makes it."""
    if os.path.isfile(path) and path.endswith(".toml"):
        return f"an experiment; train it by titan-pt train {shlex.quote(path)}, then give its job.dump_folder"
    reason = "a file" if os.path.isfile(path) else "no such folder"
    if how := hub_download(path):
        return f"{reason}{how}"
    root = Path(os.path.abspath(path))
    places = dict(_experiments())
    made_by = next((places[folder] for folder in (root, *root.parents) if folder in places), None)
    if named := [folder for folder, name in places.items() if name == path.removesuffix(".toml")]:
        folder = os.path.relpath(named[0])
        return f"{reason}; it is the name of an experiment: titan-pt train {path} makes its run folder, {folder}"
    if made_by is not None:
        return f"{reason}; make it with titan-pt train {made_by}, or correct the path"
    meant = "" if os.path.isfile(path) else meant_path(path, runs_here())
    return f"{reason}{meant}; train it first, by titan-pt train FILE.toml --job.dump_folder {path}, or correct the path"


def runs_here() -> list[str]:
    """Run folders below outputs/ that have a step, the newest first."""
    steps = {path.parent.parent: path.stat().st_mtime for path in Path("outputs").glob("*/checkpoint/step-*")}
    return [str(folder) for folder in sorted(steps, key=lambda folder: -steps[folder])][:_MOST]


def _experiments() -> Iterator[tuple[Path, str]]:
    """(run folder, name or TOML file that writes to it) of the shipped experiments and of those here."""
    here = [str(file) for folder in (Path("train_configs"), Path()) for file in sorted(folder.glob("*.toml"))]
    for name, file in [*experiments().items(), *zip(here, here, strict=True)]:
        try:
            jobs = [layer.tables["job"]["dump_folder"] for layer in read_layers(str(file))[::-1] if _names(layer)]
        except ConfigError:
            continue
        if jobs:
            yield Path(os.path.abspath(jobs[0])), name


def _names(layer: object) -> bool:
    job = getattr(layer, "tables", {}).get("job")
    return isinstance(job, dict) and isinstance(job.get("dump_folder"), str)
