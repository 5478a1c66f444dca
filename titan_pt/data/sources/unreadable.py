"""What is said of sources that cannot be read; imported where there is one."""

import errno
import itertools
import os
from pathlib import Path

from titan_pt.config.errors import ConfigError, nearest, one_of, shown
from titan_pt.config.names import meant_path
from titan_pt.run.exit_codes import Preempted

WITHOUT_HUB = (
    "download it once where there is one, `hf download --repo-type dataset NAME --local-dir data/NAME`, and name its "
    'files in path = "data/NAME/**/*.parquet" instead of dataset (HF_ENDPOINT names a mirror of the hub)'
)
"""What to do where the hub does not answer."""


def explained(error: Exception, name: str) -> Exception:
    """The cause of an error of `datasets` or below: a stop as it is, a ConfigError with the name, others as one.

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
    if isinstance(cause, ConnectionError):  # `datasets` under HF_HUB_OFFLINE
        fix = f"; {WITHOUT_HUB}"
    return ConfigError(f"{name}: cannot be read: {type(cause).__name__}: {cause}{fix}")


def no_files(pattern: str, key: str, *, unfinished: bool) -> ConfigError:
    """What is wrong with a pattern that matches no file.

    Args:
        key: the setting that it comes from.
        unfinished: it is a folder of token shards of which the end was not written.
    """
    where = f"{key} = {shown(pattern)}"
    if unfinished:
        return ConfigError(f"{where}: titan_pt.tools.prepare did not finish there; run it again")
    if os.path.isdir(pattern):
        return ConfigError(f"{where} is a folder; name its files, such as {str(Path(pattern, '*.parquet'))!r}")
    base = "" if os.path.isabs(pattern) else f"; the working folder is {Path.cwd()}"
    return ConfigError(f"{where} matches no file{base}{meant_path(pattern) or _others(pattern)}")


def _others(pattern: str) -> str:
    """Some files of the same ending in the pattern's folder, in a message."""
    beside = Path(os.path.dirname(pattern)).glob(f"*{Path(pattern).suffix}")
    found = sorted(str(file) for file in itertools.islice(beside, 1000) if Path(pattern).suffix)
    return f"; there are {', '.join(found[:3])}{' ...' * (len(found) > 3)}" if found else ""


def unknown_formatter(name: str, formatters: list[str], records: str) -> ConfigError:
    """What is wrong with a formatter that nobody knows.

    Args:
        formatters: all that are known.
        records: beginning of the names of those that make records.
    """
    kind = records if name.startswith(records) else ""
    found = [key for key in formatters if key.startswith(records) == bool(kind)]
    known, name = ([] if kind else ["text"]) + [key.removeprefix(kind) for key in found], name.removeprefix(kind)
    trainer = " to sft" if kind else ""
    return ConfigError(f"formatter = {name!r}: unknown{trainer}; known are {one_of(known)}{nearest(name, known)}")


def nothing_to_validate_on(where: str) -> ConfigError:
    """What is wrong with a validation without texts; `where` are the keys that decide what it reads."""
    return ConfigError(
        f"{where}: there is no text to validate on; give [[validation.sources]] more, raise "
        "validation.holdout_fraction, or set validation.enable = false"
    )


def unknown_source(name: str, where: str, known: list[str]) -> ConfigError:
    """The problem of a source that has neither files nor a known name."""
    return ConfigError(
        f"{where}: not built in{nearest(name, known)}; built in are {one_of(known)}; "
        "for documents of your own give path (local files) or dataset (the hub)"
    )
