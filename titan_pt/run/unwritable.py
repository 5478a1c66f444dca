"""Why a place cannot be written to: a mistake of the config, or a disk or a machine that has a bad moment.

Imported where that happens.
"""

import errno
import os
from pathlib import Path

from titan_pt.config.errors import ConfigError
from titan_pt.config.names import missing_below
from titan_pt.run.exit_codes import CannotStart

_MAY_PASS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    *(errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.EINTR),
}


def may_pass(error: OSError) -> bool:
    """Whether the disk or the machine has a bad moment: the same may succeed later."""
    return error.errno in _MAY_PASS


def unwritable(name: str, error: OSError, way_out: str) -> Exception:
    """The exception to raise: CannotStart where the same command may succeed later, else a ConfigError.

    A cluster fails the job for good on the exit code of the second.

    Args:
        name: the setting that names the place.
        way_out: from a place that can never be written to.
    """
    what = f"{name}: cannot be written to: {error.strerror or error}{_where(error)}"
    if may_pass(error):
        return CannotStart(f"{what}; see that the disk has room and is well, and run the same command again")
    return ConfigError(f"{what}; {way_out}")


def _where(error: OSError) -> str:
    """The folder in which nothing can be made, where that is not the one that was named."""
    if not isinstance(error.filename, str) or may_pass(error):
        return ""
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        files = (path for path in (error.filename, *map(str, Path(error.filename).parents)) if os.path.isfile(path))
        return next((f"; {path} is a file" for path in files), "")
    there = missing_below(error.filename)
    of_the_kernel = os.path.realpath(there).split("/")[1] in ("proc", "sys")
    return f"; nothing can be made in {there}{', a file system of the kernel' if of_the_kernel else ''}"
