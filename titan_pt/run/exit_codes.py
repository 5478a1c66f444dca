"""Exit codes, the exceptions that lead to them, and the files in which workers tell them to the launcher."""

import os
from enum import IntEnum
from pathlib import Path

from titan_pt.run.outgoing import redact

# The folder where each worker writes how it is about to leave: the agent loses it when it was signalled itself.
EXIT_CODES_VARIABLE = "TITAN_PT_EXIT_CODES"
# When the launcher was started, by `time.monotonic` of this machine: a deadline counts from there.
START_VARIABLE = "TITAN_PT_STARTED"

SIGNALLED = "signalled"  # the reason that a worker tells its launcher where a signal stopped it


class ExitCode(IntEnum):
    """Exit codes of a run, for shells and clusters."""

    DONE = 0
    """Finished: all steps, or all data, with a last checkpoint."""
    FAILED = 1
    """Failed; the reason is the last line on stderr, and a retry may help."""
    USAGE = 2
    """Wrong usage, config, path or checkpoint; a retry cannot help."""
    GAVE_UP = 70
    """Too many bad steps, or several starts without one; a person must look."""
    PREEMPTED = 75
    """Stopped by a signal, or for want of data, with a whole checkpoint on disk: the same command goes on."""
    TERMINATED = 143
    """Stopped by a signal with nothing to go on from."""


class Preempted(Exception):
    """A signal asked the run to stop, and all ranks agreed. The unfinished step is dropped."""


class Stalled(Preempted):
    """No data came for too long; all ranks agreed. Handled as a signal is: save, and let the same command go on."""


class CannotStart(Exception):
    """Something outside of this run is in its way, such as another run; told in one line, and a retry may help."""


class OtherRankFailed(RuntimeError):
    """What another rank failed with, which tells it itself; raised on all ranks at the same point."""


class GaveUp(Exception):
    """The run cannot get better by itself."""


class GaveUpTogether(GaveUp):
    """On all ranks at the same point, before anything changed: the last finished step can be saved."""


class GoBack(Exception):
    """A step asks, on all ranks and before anything changed, for the best saved step; see `BadSteps.find_best`."""


def record_exit_code(code: int, reason: str = "") -> bool:
    """A worker tells its launcher how it is about to leave and why; False where there is no launcher to tell it to."""
    folder = os.environ.get(EXIT_CODES_VARIABLE)
    if not folder:
        return False
    try:
        (Path(folder) / f"rank-{os.environ.get('RANK', '0')}").write_text(
            f"{int(code)}\n{redact(reason)}", "utf-8", "backslashreplace"
        )
    except OSError:  # the launcher may be gone; the code itself still says it
        return False
    return True
