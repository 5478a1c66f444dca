"""The step to start from among the step-N folders of runs: found, checked and chosen. No torch here.

Imported where there are such folders.
"""

import logging
import re
from pathlib import Path
from typing import Any

from titan_pt.components.checkpoint.manifest import MANIFEST, NOT_NOW, find_damage
from titan_pt.components.checkpoint.no_run import no_run
from titan_pt.components.checkpoint.step_folders import REQUIRED, iter_steps, saved_order
from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.run.exit_codes import CannotStart
from titan_pt.run.files import parse_json
from titan_pt.run.run_folder import run_folder

logger = logging.getLogger("titan_pt")


def saved_streams(config: JobConfig) -> int | None:
    """The number of data streams of the step that a start would resume; None without one, or for other data."""
    options = config.checkpoint
    steps = dict(iter_steps(run_folder(config) / options.folder)) if options.enable else {}
    path = steps.get(options.load_step) or next(iter(steps.values()), None)
    if path is None or "data" in options.exclude_from_loading:
        return None
    saved = _read_json(path / "data.json").get("identity", {}).get("num_streams")
    return saved if isinstance(saved, int) and saved > 0 else None


def find_step(folder: Path, step: int = -1) -> Path | None:
    """Find the newest whole step of a checkpoint folder, or step `step`; None where the folder holds no steps.

    Raises:
        ConfigError: the wished step is missing or damaged, or all are damaged.
        CannotStart: one of these cannot be read now.
    """
    steps = dict(iter_steps(folder))
    if step >= 0:
        if step not in steps:
            known = ", ".join(str(number) for number in sorted(steps)) or "none"
            raise ConfigError(f"checkpoint.load_step = {step}: {folder} has no step-{step}; it has {known}")
        if max(steps) > step:
            logger.warning(
                f"checkpoint.load_step = {step}: {folder} keeps its later steps, up to step-{max(steps)}; "
                "without load_step a start resumes from the newest"
            )
        steps = {step: steps[step]}
    damages = []
    for path in steps.values():
        damage = find_damage(path, REQUIRED)
        if damage is None:
            return path
        damages.append(f"{path.name}: {damage}")
        logger.warning(f"{path} is not whole: {damage}; it is passed over")
    what = f"{folder}: no step is whole ({'; '.join(damages)})"
    if any(NOT_NOW in damage for damage in damages):
        raise CannotStart(f"{what}; see that the disk is well, and run the same command again")
    if damages:
        raise ConfigError(f"{what}; restore one, or move the folder away to start anew")
    return None


def find_resume(folder: Path, load_step: int) -> Path | None:
    """Find the step to resume from: the newest whole one, or once, `load_step`.

    Steps saved after a `load_step` record it: the same command then goes on from the step saved last.

    Raises:
        ConfigError: the wished step is missing or damaged, or all are damaged.
    """
    for path in _latest_saved(folder) if load_step >= 0 else ():
        if honoured(_read_json(path / "train.json")).get("load_step") != load_step:
            break
        damage = find_damage(path, REQUIRED)
        if damage is None:
            logger.info(
                f"checkpoint.load_step = {load_step} was honoured at an earlier start, after which {path.name} was "
                f"saved; to go back to it again, move the steps after step-{load_step} away"
            )
            return path
        logger.warning(f"{path} is not whole: {damage}; it is passed over")
    return find_step(folder, load_step)


def honoured(train: dict[str, Any]) -> dict[str, Any]:
    """The load_step and exclude_from_loading that applied when a train.json was saved; defaults in older files."""
    return train.get("honoured", {"load_step": -1, "exclude_from_loading": []})


def _latest_saved(folder: Path) -> list[Path]:
    """Every `step-N`, the one saved last first; after a `load_step` it need not have the highest number."""
    return sorted((path for _, path in iter_steps(folder)), key=saved_order, reverse=True)


def _read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty where it cannot be read, for then `find_damage` reports the step."""
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def find_initial(path: str, key: str = "checkpoint.initial_load_path") -> Path:
    """Find the weights at a path: a run folder, its checkpoint folder, one step-N, a Hugging Face or PEFT folder.

    Args:
        key: what gave the path, for messages.

    Raises:
        ConfigError: there is no whole step, and no config.json of a Hugging Face folder.
    """
    where = f"{key} = {path!r}"
    root = Path(path)
    if not root.is_dir():
        raise ConfigError(f"{where}: {no_run(path)}")
    if is_hf_folder(root) or is_adapter_folder(root):  # first: an export may be named after its step too
        return root
    if (root / MANIFEST).is_file() or re.fullmatch(r"step-\d+", root.name):
        damage = find_damage(root, REQUIRED)
        if damage is not None:
            raise ConfigError(f"{where}: not a whole checkpoint: {damage}")
        return root
    for folder in (root, root / "checkpoint"):
        found = find_step(folder)
        if found is not None:
            return found
    raise ConfigError(
        f"{where}: holds neither a step-N nor a config.json; give a run folder, its checkpoint folder, one step-N, "
        "or a Hugging Face folder"
    )


def is_hf_folder(folder: Path) -> bool:
    """Whether a folder is a Hugging Face one, by its config.json; it need not be whole."""
    return (folder / "config.json").is_file()


def is_adapter_folder(folder: Path) -> bool:
    """Whether a folder is one of PEFT, which holds adapters alone."""
    return (folder / "adapter_config.json").is_file() and not any(folder.glob("model*.safetensors*"))


def check_has_averages(folder: Path, asked: str) -> None:
    """Raise a ConfigError unless a step holds the averaged weights that `asked` asks for."""
    if is_hf_folder(folder):
        raise ConfigError(f"{asked}: {folder} is a Hugging Face folder, which holds one set of weights; leave it out")
    if "ema" not in _read_json(folder / "train.json"):
        raise ConfigError(
            f"{asked}: {folder} has no averaged weights, as its run had no training.ema_decay; leave it out, or "
            "average the last steps by titan_pt.tools.average"
        )
