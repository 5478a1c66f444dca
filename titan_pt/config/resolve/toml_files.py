"""TOML files: their tables, bounded, with what is told where one cannot be read."""

import re
import sys
from pathlib import Path
from typing import Any

from titan_pt.config.errors import ConfigError, shown
from titan_pt.run.files import read_text
from titan_pt.run.paths import expand_path

if sys.version_info >= (3, 11):
    import tomllib as tomllib  # for others too
else:
    import tomli as tomllib

Tables = dict[str, Any]
DEEPEST, _MOST_BYTES = 16, 1 << 20
_QUOTED = re.compile(r"'{3}[\s\S]*?(?:'{3,}|\Z)|\"{3}(?:\\?[\s\S])*?(?:\"{3,}|\Z)|'[^'\n]*'?|\"(?:\\.|[^\"\n])*\"?|#.*")
_LONG_KEY = re.compile(r"(?<![\w-])(?:[\w-]+[ \t]*\.[ \t]*){32}")
"""Keys a."b".a.a...: the library needs the square of their parts in memory."""


def parse_toml(text: str) -> Any:
    """The tables of a TOML document.

    Raises:
        ValueError: it is none (`tomllib.TOMLDecodeError`), is nested too deeply, has a number of thousands of digits.
    """
    try:
        found = None if _LONG_KEY.search(_QUOTED.sub("q", text)) else tomllib.loads(text)
    except RecursionError:
        found = None
    if found is None or not _is_shallow(found, DEEPEST):
        raise ValueError("nested too deeply")
    return found


def expanded(path: str, said_by: str) -> str:
    """The path without `~` and variables; `said_by` is named where it has none."""
    try:
        return expand_path(path)
    except ValueError as error:
        raise ConfigError(f"{shown(path)} ({said_by}): {error}") from None


def read_toml(path: Path, said_by: str) -> Tables:
    """The tables of a file; `said_by` is named where it cannot be read."""
    text = ""
    try:
        text = read_text(path, _MOST_BYTES)
        tables: Tables = parse_toml(text)
    except (OSError, ValueError) as error:
        from titan_pt.config.resolve.unreadable import unreadable

        raise unreadable(error, path, said_by, text) from None
    return tables


def _is_shallow(value: Any, limit: int) -> bool:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return limit > 0 and all(_is_shallow(child, limit - 1) for child in children)
