"""Starts of a run that end by themselves without a newly finished step: a cluster would repeat them for ever.

For want of data, or killed for using too much memory. A start that a signal stopped is not counted, nor one that never
held the run folder: a busy cluster is no fault of the run.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titan_pt.run.cgroup import oom_kills
from titan_pt.run.exit_codes import CannotStart, Stalled
from titan_pt.run.files import write_atomic
from titan_pt.run.own_json import read_own

if TYPE_CHECKING:
    from titan_pt.run.exit_codes import Preempted
    from titan_pt.trainer import Trainer

logger = logging.getLogger("titan_pt")

FILE = "attempts.json"
"""In the run folder: idle_starts, and step, the last finished one; kills, killed_at (a step), and oom_kills by then."""
LIMIT = 3


def count_stop(trainer: "Trainer | None", run_folder: Path, error: "Preempted", first_step: int) -> str | None:
    """Note a start that was stopped, by a signal or for want of data. On all ranks that have met, else on the main one.

    Args:
        first_step: the step that it resumed from.

    Returns:
        Why the run should give up, else None.
    """
    last_step = trainer.state.step if trainer else first_step

    def count() -> str | None:
        if not isinstance(error, Stalled) and last_step <= first_step:
            return None  # a signal
        if trainer is None and not _is_free(run_folder):
            return None
        return count_start(run_folder, str(error), first_step=first_step, last_step=last_step)

    return trainer.context.world.on_main(count) if trainer else count()


def count_start(run_folder: Path, why: str, *, first_step: int, last_step: int) -> str | None:
    """Note a start that ended by itself, or one that made progress. For rank 0.

    Args:
        why: what stopped it.
        first_step: the step it resumed from.
        last_step: the last step it finished.

    Returns:
        Why the run should give up: LIMIT starts in a row finished no step. The count then begins anew, since a person
        has looked before the next start.
    """
    idle = 0 if last_step > first_step else _number(read_own(run_folder / FILE), "idle_starts") + 1
    gives_up = idle >= LIMIT
    _write(run_folder, {"idle_starts": 0 if gives_up else idle, "step": last_step})
    if not gives_up:
        return None
    return (
        f"{LIMIT} starts in a row were stopped before they finished a step; the last one: {why}; its checkpoint "
        "is whole; when the cause is gone, run the same command again"
    )


def count_kill(run_folder: Path, step: int) -> str | None:
    """Note that the start before this one was killed. For rank 0.

    Args:
        step: the step that this start resumes from.

    Returns:
        Why the run should give up: LIMIT starts in a row were killed before they saved a step, and this one's cgroup
        was out of memory meanwhile. Without that sign a warning tells it, for a cluster kills too.
    """
    before, by_memory = read_own(run_folder / FILE), oom_kills()
    kills = _number(before, "kills") + 1 if _number(before, "killed_at") == step else 0
    out_of_memory = by_memory > _number(before, "oom_kills")
    gives_up = kills >= LIMIT and out_of_memory
    _write(run_folder, {**before, "kills": 0 if gives_up else kills, "killed_at": step, "oom_kills": by_memory})
    if kills < LIMIT:
        return None
    told = f"{kills} starts in a row were killed (exit code 137) before they saved a step after step {step}"
    advice = (
        "lower training.local_batch_size or data.num_workers, give the container more memory, or save more often "
        "(checkpoint.interval)"
    )
    if gives_up:
        return f"{told}, and the memory of their cgroup was spent; {advice}; then run the same command again"
    logger.warning(f"{told}; where they were out of memory (dmesg, the state of the pod), {advice}")
    return None


def _is_free(run_folder: Path) -> bool:
    """Whether no other run is in the folder: a start that this one would have kept out is not the run's."""
    from titan_pt.run.run_folder import lock_run_folder

    try:
        lock_run_folder(run_folder).close()
    except CannotStart:
        return False
    return True


def _write(run_folder: Path, counts: Mapping[str, Any]) -> None:
    try:
        write_atomic(run_folder / FILE, json.dumps(counts))
    except OSError as error:  # the checkpoint is whole; it must not be lost to a count
        logger.warning(f"{run_folder / FILE} cannot be written: {error}; this start is not counted")


def _number(counts: Mapping[str, Any], name: str) -> int:
    value = counts.get(name)
    return value if isinstance(value, int) else 0
