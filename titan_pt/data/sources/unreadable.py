"""Errors of `datasets` and the libraries below it, as ConfigErrors with their cause; imported where there is one."""

import errno

from titan_pt.config.errors import ConfigError
from titan_pt.run.exit_codes import Preempted


def explained(error: Exception, name: str) -> Exception:
    """The cause of an error: a stop as it is, a ConfigError with the source's name before it, others as one.

    Args:
        name: the source, for messages.
    """
    cause = error if isinstance(error, ConfigError) else error.__cause__ or error
    if isinstance(cause, Preempted):
        return cause
    if isinstance(cause, ConfigError):
        return ConfigError(*(f"{name}: {problem}" for problem in cause.problems))
    # The library's own files: a source's would have been named by a ConfigError.
    full = isinstance(cause, OSError) and cause.errno in (errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
    fix = "; set data.cache_dir and HF_HOME to folders with space to write" if full else ""
    return ConfigError(f"{name}: cannot be read: {type(cause).__name__}: {cause}{fix}")
