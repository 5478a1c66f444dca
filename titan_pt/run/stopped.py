"""How a run ends that was asked to stop, or has no data. Imported where one was."""

import os
import signal
import sys
from typing import TYPE_CHECKING

from titan_pt.components.checkpoint.step_folders import has_steps
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.run.exit_codes import ExitCode, GaveUp, Preempted, Stalled
from titan_pt.run.idle_starts import count_stop
from titan_pt.run.log import logger
from titan_pt.run.run_folder import run_folder
from titan_pt.run.signals import take_signal

if TYPE_CHECKING:
    from titan_pt.run.ending import RunEnding
    from titan_pt.trainer import Trainer


def close_stopped(ending: "RunEnding", config: JobConfig, error: Preempted) -> ExitCode:
    """Close the run. PREEMPTED where a checkpoint exists, else TERMINATED.

    Raises:
        GaveUp: several starts in a row that no signal stopped finished no step.
        Stalled: there is no data, and no checkpoint.
    """
    if not isinstance(error, Stalled):
        take_signal(signal.SIGTERM)  # whichever rank it came to: no launcher starts this run again
    why, trainer = str(error) or "Stopped by a signal", ending.trainer
    if not _has_checkpoint(trainer, config):
        if isinstance(error, Stalled):
            ending.failed(error)
            raise error
        logger.warning(f"{why} before there was a checkpoint", extra={"live": False})
        ending.close(wait=True)
        return ExitCode.TERMINATED
    if trainer or os.environ.get("RANK", "0") == "0":  # whose code the launcher takes where they did not meet
        reason = count_stop(trainer, run_folder(config), error, ending.first_step)
        if reason:
            ending.close(wait=trainer is not None or os.environ.get("WORLD_SIZE", "1") == "1")
            raise GaveUp(reason)
    logger.warning(f"{why}; the same command goes on from the checkpoint", extra={"live": False})
    ending.close(wait=True)
    if trainer and trainer.context.world.is_main and hasattr(sys.stderr, "end_live"):  # a terminal
        from titan_pt.trainers.end_panel import show_stop

        show_stop(config)
    return ExitCode.PREEMPTED


def _has_checkpoint(trainer: "Trainer | None", config: JobConfig) -> bool:
    if trainer is not None and trainer.state.step > 0:
        return trainer.has_checkpoint
    return has_steps(config)
