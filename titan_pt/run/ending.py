"""The ending of a run: the exit code of each outcome, the reason on stderr, and the order of closing."""

import contextlib
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.run.exit_codes import (
    SIGNALLED,
    CannotStart,
    ExitCode,
    GaveUp,
    Stalled,
    record_exit_code,
)
from titan_pt.run.heartbeat import enter
from titan_pt.run.log import init_logging
from titan_pt.run.signals import ignore_signals, signalled

if TYPE_CHECKING:
    from titan_pt.trainer import Trainer


_runs: list[JobConfig] = []  # the config of the run, when it is known


def exit_code_of(run: Callable[[], ExitCode]) -> int:
    """Call `run`; returns its exit code, or that of its exception, whose reason is the last line on stderr."""
    reason = ""
    _runs.clear()
    try:
        init_logging()
        code = run()
    except ConfigError as error:
        code, reason = ExitCode.USAGE, error.report()
    except GaveUp as error:
        code, reason = ExitCode.GAVE_UP, f"gave up: {error}"
    except (CannotStart, Stalled) as error:
        code, reason = ExitCode.FAILED, f"failed: {error}"
    except (Exception, GeneratorExit) as error:  # a user's code may raise that one too
        from titan_pt.run.failure import tell

        code, reason = tell(error)
    ignore_signals()
    recorded = record_exit_code(code, reason or (SIGNALLED if signalled() else ""))
    if not recorded and _runs and _runs[0].job.notify and os.environ.get("RANK", "0") == "0":
        from titan_pt.run.notify import notify

        notify(_runs[0], code, [reason] if reason else [])
    if reason and not recorded:
        from titan_pt.run.failure import print_once

        with contextlib.suppress(OSError):  # a full disk behind stderr does not change the code
            print_once(reason)
    return code


class RunEnding:
    """Ends one run: closes what it opened. `stopped.py` ends one that was asked to stop."""

    def __init__(self, config: JobConfig) -> None:
        _runs.append(config)
        self.trainer: Trainer | None = None
        """Set when it is built."""
        self.first_step = 0
        """The step that this start resumed from."""
        enter("the start", "init", config.comm)
        self._config, self._closed = config, threading.Event()
        threading.Thread(target=_be_watched, args=(config, self._closed), name="watched", daemon=True).start()

    def close(self, *, wait: bool) -> None:
        """Flush the records; with `wait`, meet the other ranks for the end of a save and of the process groups."""
        from titan_pt.distributed.world import stop_world

        if self.trainer is not None:
            self.trainer.close(wait=wait)
        if wait:
            stop_world()
        self._closed.set()

    def failed(self, error: BaseException) -> None:
        """Tell the launcher the reason and close, without waiting for other ranks: they may be gone."""
        from titan_pt.run.failure import note_failure

        note_failure(error, self._config, self.trainer)
        self.close(wait=_is_alone())


def _be_watched(config: JobConfig, closed: threading.Event) -> None:
    """In a thread, which holds nothing of torch: let a watcher see this process. A short run alone has none."""
    if not closed.wait(0.0 if "TORCHELASTIC_ERROR_FILE" in os.environ else config.comm.init_timeout_seconds / 10):
        from titan_pt.run.failure import record_failure
        from titan_pt.run.watched import be_watched

        be_watched(config, closed, record_failure)


def _is_alone() -> bool:
    return os.environ.get("WORLD_SIZE", "1") == "1"
