"""Starts of a run that end without a newly finished step: a cluster that repeats exit code 75 would do so for ever."""

import json
import logging
from pathlib import Path

from titan_pt.run.files import parse_json, write_atomic

logger = logging.getLogger("titan_pt")

FILE = "attempts.json"
"""In the run folder: {"idle_starts": n, "step": the last finished one}."""
LIMIT = 3


def count_start(run_folder: Path, why: str, *, first_step: int, last_step: int) -> str | None:
    """Note a start that was stopped, by a signal or for want of data. For rank 0.

    Args:
        why: what stopped it.
        first_step: the step it resumed from.
        last_step: the last step it finished.

    Returns:
        Why the run should give up: LIMIT starts in a row finished no step. The count then begins anew, since a person
        has looked before the next start.
    """
    idle = 0 if last_step > first_step else _read(run_folder / FILE) + 1
    gives_up = idle >= LIMIT
    try:
        write_atomic(run_folder / FILE, json.dumps({"idle_starts": 0 if gives_up else idle, "step": last_step}))
    except OSError as error:  # the checkpoint is whole; it must not be lost to a count
        logger.warning(f"{run_folder / FILE} cannot be written: {error}; this start is not counted")
    if not gives_up:
        return None
    return (
        f"{LIMIT} starts in a row were stopped before they finished a step; the last one: {why}; its checkpoint "
        "is whole; when the cause is gone, run the same command again"
    )


def _read(path: Path) -> int:
    """Idle starts so far; a file that cannot be read counts as none."""
    try:
        return int(parse_json(path.read_text(encoding="utf-8"))["idle_starts"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return 0
