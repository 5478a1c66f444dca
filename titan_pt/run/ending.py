"""The ending of a run: the exit code of each outcome, the reason on stderr, and the order of closing."""

import atexit
import contextlib
import functools
import os
import sys
import threading
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.run.exit_codes import CannotStart, ExitCode, GaveUp, Preempted, Stalled, record_exit_code
from titan_pt.run.log import logger, print_once
from titan_pt.run.signals import ignore_signals

if TYPE_CHECKING:
    from titan_pt.trainer import Trainer


def exit_code_of(run: Callable[[], ExitCode]) -> int:
    """Call `run`; returns its exit code, or that of its exception, whose reason is the last line on stderr."""
    reason = ""
    try:
        code = run()
    except ConfigError as error:
        code, reason = ExitCode.USAGE, error.report()
    except GaveUp as error:
        code, reason = ExitCode.GAVE_UP, f"gave up: {error}"
    except (CannotStart, Stalled) as error:
        code, reason = ExitCode.FAILED, f"failed: {error}"
    except (Exception, GeneratorExit) as error:  # a user's code may raise that one too
        from titan_pt.protocols.plugins import users_line

        told, place = f"{type(error).__name__}: {' '.join(str(error).split())}", users_line(error)  # one line
        if place and isinstance(error, NameError | ImportError | SyntaxError):  # a retry cannot help
            code, reason = ExitCode.USAGE, f"config error: experimental.custom_import: {told} ({place})"
        else:
            code = ExitCode.FAILED
            with contextlib.suppress(OSError):  # a full disk behind stderr does not change the code
                traceback.print_exc()
                print(f"failed: {told}{f' ({place})' if place else ''}", file=sys.stderr)
    ignore_signals()
    recorded = record_exit_code(code, reason)
    if reason and not recorded:
        with contextlib.suppress(OSError):
            print_once(reason)
    return code


def leave(code: int) -> NoReturn:
    """End the process, without the interpreter's own finalization.

    A thread of a process group may still hold the tensors of its last collective. It asks for the interpreter's lock to
    free them, and torch aborts the process where the interpreter is ending (pytorch/pytorch#190489). A rank that failed
    does not even join threads and call exit handlers: they would wait for ranks that are gone.
    """
    if code not in (ExitCode.FAILED, ExitCode.USAGE, ExitCode.GAVE_UP) or _is_alone():
        threading._shutdown()  # type: ignore[attr-defined]  # as multiprocessing ends its processes
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # whoever read it is gone
            stream.flush()
    os._exit(code)


class RunEnding:
    """Ends one run: closes what it opened, and decides the exit code of a run that was stopped."""

    def __init__(self, config: JobConfig) -> None:
        self._config = config
        self.trainer: Trainer | None = None
        """Set when it is built."""
        self.first_step = 0
        """The step that this start resumed from."""

    def close(self, *, wait: bool) -> None:
        """Flush the records; with `wait`, meet the other ranks for the end of a save and of the process groups."""
        from titan_pt.distributed.world import stop_world

        if self.trainer is not None:
            self.trainer.close(wait=wait)
        if wait:
            stop_world()

    def failed(self, error: BaseException) -> None:
        """Tell the launcher the reason and close, without waiting for other ranks: they may be gone."""
        from titan_pt.run.out_of_memory import explain, is_out_of_memory

        if is_out_of_memory(error):
            error.args = (explain(error, self.trainer),)
        if not isinstance(error, ConfigError | GaveUp):
            _record_failure(error)  # before this rank leaves, which makes the others fail too
        self.close(wait=_is_alone())

    def stopped(self, error: Preempted) -> ExitCode:
        """Close a run that was asked to stop, or has no data. PREEMPTED where a checkpoint exists, else TERMINATED.

        Raises:
            GaveUp: several starts in a row finished no step.
            Stalled: there is no data, and no checkpoint.
        """
        why = str(error) or "Stopped by a signal"
        if not self._has_checkpoint():
            if isinstance(error, Stalled):
                self.failed(error)
                raise error
            logger.warning(f"{why} before there was a checkpoint")
            self.close(wait=True)
            return ExitCode.TERMINATED
        self._give_up_without_progress(why)
        logger.warning(f"{why}; the same command goes on from the checkpoint")
        self.close(wait=True)
        return ExitCode.PREEMPTED

    def _has_checkpoint(self) -> bool:
        from titan_pt.components.checkpoint.step_folders import has_steps

        if self.trainer is not None and self.trainer.state.step > 0:
            return self.trainer.has_checkpoint
        return has_steps(self._config)

    def _give_up_without_progress(self, why: str) -> None:
        """Count a start that was stopped; raise GaveUp where several in a row finished no step.

        On all ranks, but for a start that has not met the others yet: then on the main one, whose code the launcher
        takes.
        """
        from titan_pt.run.idle_starts import count_start
        from titan_pt.run.run_folder import run_folder

        trainer = self.trainer
        last_step = trainer.state.step if trainer else self.first_step
        count = functools.partial(
            count_start, run_folder(self._config), why, first_step=self.first_step, last_step=last_step
        )
        is_main = os.environ.get("RANK", "0") == "0"
        reason = trainer.context.world.on_main(count) if trainer else (count() if is_main else None)
        if reason:
            self.close(wait=trainer is not None or _is_alone())
            raise GaveUp(reason)


def _record_failure(error: BaseException) -> None:
    """Tell the launcher the reason: other ranks may print after this one, and fail because it did."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)


def _is_alone() -> bool:
    return os.environ.get("WORLD_SIZE", "1") == "1"
