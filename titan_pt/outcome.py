"""How a run ends: exit codes, and the exceptions that lead to them."""

from enum import IntEnum


class ExitCode(IntEnum):
    """What a caller or a cluster reads."""

    DONE = 0
    """Finished: all steps, or all data, with a last checkpoint."""
    FAILED = 1
    """Failed; the reason is the last line on stderr, and a retry may help."""
    USAGE = 2
    """Wrong usage, config, path or checkpoint; a retry cannot help."""
    GAVE_UP = 70
    """Too many bad steps; a person must look."""
    PREEMPTED = 75
    """Stopped by a signal, or for want of data, with a whole checkpoint on disk: the same command goes on."""
    TERMINATED = 143
    """Stopped by a signal with nothing to go on from."""


class Preempted(Exception):
    """A signal asked the run to stop, and all ranks agreed. The unfinished step is dropped."""


class Stalled(Preempted):
    """No data came for too long; all ranks agreed. Handled as a signal is: save, and let the same command go on."""


class GaveUp(Exception):
    """The run cannot get better by itself."""
