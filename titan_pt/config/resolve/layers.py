"""Layers of a config: TOML files with their `extends` parents, merged with the origin of every value."""

import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class Layer:
    """Values of one origin: a file or the command line."""

    origin: str
    tables: Tables


@dataclass
class Merged:
    """All layers in one tree; `origins` maps the path of a value to the layer that set it last."""

    tables: Tables = field(default_factory=dict)
    origins: dict[tuple[str | int, ...], str] = field(default_factory=dict)

    def origin(self, *path: str | int) -> str:
        """Return the origin of the value at `path`: the layer that set it last."""
        return self.origins.get(path, "default")

    def blame(self, *path: str | int) -> str:
        """Return the origin of the value at `path`; where it is missing, that of the nearest table or array."""
        around = (path[:length] for length in range(len(path), 0, -1))
        return next((self.origins[part] for part in around if part in self.origins), "default")

    def copied(self) -> Tables:
        """The tables, of which validation may keep and change its own."""
        return {name: dict(table) if isinstance(table, dict) else table for name, table in self.tables.items()}

    def table_at(self, path: list[str]) -> Tables | None:
        """The table at `path`, or None."""
        table: Any = self.tables
        for part in path:
            table = table.get(part) if isinstance(table, dict) else None
        return table if isinstance(table, dict) else None


def read_layers(path: str) -> list[Layer]:
    """The file's layers, parents first; `extends` is relative to the file that says it.

    A file that two others extend counts once, at its first place: neither undoes what the other changed.

    Raises:
        ConfigError: a file is missing, is not TOML, or extends itself.
    """
    name = expanded(path, "--job.config_file")
    tables = read_toml(Path(name), " (--job.config_file)") if os.path.isfile(name) else None
    if tables is None or "extends" in tables:
        from titan_pt.config.resolve.extending import with_parents

        return with_parents(name)
    return [Layer(name, tables)]


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


def merge(layers: list[Layer], pairs: Iterable[tuple[str, str]], problems: list[str]) -> Merged:
    """Later layers win; tables merge, everything else is replaced whole.

    `pairs` name two keys of which a higher layer's one replaces the lower layer's other (`JobConfig.PAIRS`). A layer
    that sets both keys of a pair, or makes a table of what was a value, joins `problems`.
    """
    merged = Merged()
    for layer in layers:
        for pair in pairs:
            present = [key for key in pair if _get(layer.tables, key) is not None]
            if len(present) == 2:
                problems.append(f"{pair[0]} and {pair[1]} ({layer.origin}): a pair; give one of them")
            for key in present:
                other = pair[1] if key == pair[0] else pair[0]
                _delete(merged, other)
        problems += _hidden_mistakes(merged, layer)
        _merge_into(merged, merged.tables, layer.tables, layer.origin, ())
    return merged


def _hidden_mistakes(merged: Merged, layer: Layer) -> list[str]:
    """`job = 3` under a layer with a table [job], which replaces it: validation would not see it."""
    return [
        f"{name} = {shown(value)} ({merged.blame(name)}): must be a table, [{name}]"
        for name, value in merged.tables.items()
        if not isinstance(value, dict) and isinstance(layer.tables.get(name), dict)
    ]


def _merge_into(merged: Merged, target: Tables, tables: Tables, origin: str, path: tuple[str, ...]) -> None:
    for key, value in tables.items():
        here = (*path, key)
        if not isinstance(value, dict):
            target[key] = value
            merged.origins[here] = origin
            continue
        if not isinstance(target.get(key), dict):
            target[key] = {}
            merged.origins[here] = origin
        _merge_into(merged, target[key], value, origin, here)


def _get(tables: Tables, name: str) -> Any:
    section, key = name.split(".")
    table = tables.get(section)
    return table.get(key) if isinstance(table, dict) else None


def _delete(merged: Merged, name: str) -> None:
    section, key = name.split(".")
    table = merged.tables.get(section)
    if isinstance(table, dict) and key in table:
        del table[key]
        del merged.origins[section, key]
