"""Why a place cannot be written to: a mistake of the config, or a disk or a machine that has a bad moment.

Imported where that happens.
"""

import errno

from titan_pt.config.errors import ConfigError
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
    what = f"{name}: cannot be written to: {error.strerror or error}"
    if may_pass(error):
        return CannotStart(f"{what}; see that the disk has room and is well, and run the same command again")
    return ConfigError(f"{what}; {way_out}")
