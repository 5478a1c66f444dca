"""Which steps a run keeps. Imported where one has to go, or the best is marked."""

import json
import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

from titan_pt.components.checkpoint.manifest import find_damage
from titan_pt.components.checkpoint.step_folders import REQUIRED, iter_steps
from titan_pt.config.schema.checkpoint import Checkpoint
from titan_pt.run.own_json import read_steps
from titan_pt.run.removal import remove_folder
from titan_pt.run.run_folder import METRICS_FILE

logger = logging.getLogger("titan_pt")

BEST = "best"
"""Link beside the steps to the one that is the best by `keep_best`; tools open it as a step."""


def prune(folder: Path, run_folder: Path, options: Checkpoint, step: int) -> None:
    """Keep the newest whole steps up to this one, those of `keep_every_n` and `keep_best`, and `load_step`.

    Damaged steps do not count and later ones are of a branch that was left (`load_step`, or a fallback from damage):
    neither may push out the steps to go on from.
    """
    try:
        steps = _whole_steps(folder, options, step)
        best = best_step(run_folder, options.keep_best, steps) if options.keep_best else None
        if best is not None:
            _mark_best(folder, best)
        elif options.keep_best:
            logger.warning(
                f"checkpoint.keep_best = {options.keep_best!r}: no saved step has it in metrics.jsonl so far"
            )
        for number in surplus(list(steps), options, best):
            remove_folder(steps[number])
    except OSError as error:  # the new step is whole all the same
        logger.warning(f"old steps could not be removed, or the best one not be marked: {error}")


def remove_superseded(folder: Path, run_folder: Path, options: Checkpoint, step: int) -> bool:
    """Remove the oldest step that `prune` would, once this one is whole, but never the newest whole one.

    Returns:
        Whether there was such a step.
    """
    try:
        steps = _whole_steps(folder, options, step - 1)
        best = best_step(run_folder, options.keep_best, steps) if options.keep_best else None
        doomed = surplus(list(steps), options, best, coming=1)
        if not doomed:
            return False
        logger.warning(f"there is no space for step {step}: step-{doomed[-1]}, which it supersedes, is removed first")
        remove_folder(steps[doomed[-1]])
    except OSError as error:
        logger.warning(f"an old step could not be removed: {error}")
        return False
    return True


def leave_behind(
    folder: Path, run_folder: Path, key: str, least: float, in_mirror: Callable[[int], None] | None = None
) -> Path | None:
    """The step that is the best by a key of metrics.jsonl; later ones get names that nothing opens.

    The highest of these stays, to look at; the others are removed, and what an earlier time left.

    Args:
        in_mirror: removes the copies of steps behind one; called first, for a start fetches those that are newer.

    Returns:
        None where no whole step has a value of `least` or more.
    """
    steps = {n: path for n, path in iter_steps(folder) if find_damage(path, REQUIRED, hashes=False) is None}
    good = {n: value for n, value in _values(run_folder / METRICS_FILE, key) if n in steps and value >= least}
    best = _best(good, key)
    if best is None:
        return None
    if in_mirror:
        in_mirror(best)
    behind: list[Path] = []
    for number, path in iter_steps(folder):
        if number > best:
            left = path.with_name(f"{path.name}.collapsed")
            if left.exists():  # of an earlier time
                remove_folder(left)
            path.rename(left)
            behind.append(left)
    for path in folder.glob("step-*.collapsed") if behind else ():
        if path != behind[0]:
            remove_folder(path)
    return steps[best]


def surplus(steps: Sequence[int], options: Checkpoint, best: int | None, *, coming: int = 0) -> list[int]:
    """Which of these steps, the highest first, are kept no longer.

    Args:
        coming: whole steps that will be there soon; until then the newest stays.
    """
    if not options.keep_latest_k:
        return []
    old = steps[max(options.keep_latest_k - coming, 1) :]
    every = options.keep_every_n
    return [number for number in old if number != best and not (every and number % every == 0)]


def best_step(run_folder: Path, key: str, steps: Collection[int]) -> int | None:
    """The step with the best value of a key of metrics.jsonl; the newest of several. None where none has a value."""
    return _best({step: value for step, value in _values(run_folder / METRICS_FILE, key) if step in steps}, key)


def _best(values: Mapping[int, float], key: str) -> int | None:
    """The step with the best of these values of a key, the newest of several."""
    better = min if is_lower_better(key) else max
    best = better(values.values(), default=None)
    return max((step for step, value in values.items() if value == best), default=None)


def is_lower_better(key: str) -> bool:
    """Whether lower values of a validation's key are better: losses and their like, not accuracies and rewards."""
    return key.startswith("val_") or key.rpartition("/")[2] in ("loss", "perplexity", "bpb")


def _whole_steps(folder: Path, options: Checkpoint, last: int) -> dict[int, Path]:
    """Whole steps up to this one without load_step, which the user named, the highest first."""
    return {
        number: path
        for number, path in iter_steps(folder)
        if number <= last and number != options.load_step and find_damage(path, REQUIRED, hashes=False) is None
    }


def _values(path: Path, key: str) -> Iterator[tuple[int, float]]:
    for _, _, row in read_steps(path, json.dumps(key).encode()) if path.is_file() else ():
        if row is not None and isinstance(value := row.get(key), int | float):
            yield row["step"], float(value)


def _mark_best(folder: Path, step: int) -> None:
    link = folder / BEST
    if link.is_symlink() and os.readlink(link) == f"step-{step}":
        return
    temporary = folder / f"{BEST}.tmp"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(f"step-{step}", target_is_directory=True)
    os.replace(temporary, link)
