"""The step-N folders of runs, whole or not. No torch here."""

import re
from collections.abc import Iterator
from pathlib import Path

from titan_pt.components.checkpoint.file_hashes import MANIFEST
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.run.files import parse_json
from titan_pt.run.run_folder import run_folder

REQUIRED = ("train.json", "data.json", "tensors/.metadata")
"""Files without which a step is not whole."""


def iter_steps(folder: Path) -> Iterator[tuple[int, Path]]:
    """Yield (step, folder) of every `step-N`, whole or not, the highest step first."""
    steps = [
        (int(match[1]), path)
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (match := re.fullmatch(r"step-(\d+)", path.name)) and path.is_dir()
    ]
    yield from sorted(steps, reverse=True)


def saved_order(path: Path) -> tuple[int, float]:
    """When a step was saved: its number among the saves of the folder, and for those without one the clock's time."""
    try:
        manifest = parse_json((path / MANIFEST).read_text(encoding="utf-8"))
        return int(manifest.get("order", 0)), float(manifest["time"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError):
        return 0, 0.0


def has_steps(config: JobConfig) -> bool:
    """Whether the run folder holds steps to resume from."""
    options = config.checkpoint
    return options.enable and any(iter_steps(run_folder(config) / options.folder))
