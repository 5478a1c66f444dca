"""Why a source cannot be read. Imported where one cannot."""

import errno

from titan_pt.config.errors import ConfigError
from titan_pt.run.exit_codes import Preempted


def explained(error: Exception, title: str) -> Exception:
    """The ConfigError, or the request to stop, that is behind an error of `datasets` and the libraries below it.

    Args:
        title: of the source.
    """
    cause = error if isinstance(error, ConfigError) else error.__cause__ or error
    if isinstance(cause, Preempted):
        return cause
    if isinstance(cause, ConfigError):
        return ConfigError(*(f"{title}: {problem}" for problem in cause.problems))
    # The library's own files: a source's would have been named by a ConfigError.
    full = isinstance(cause, OSError) and cause.errno in (errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
    fix = "; set data.cache_dir and HF_HOME to folders with space to write" if full else ""
    return ConfigError(f"{title}: cannot be read: {type(cause).__name__}: {cause}{fix}")
