"""TorchTitan's keys that titan_pt has no use for, and names that changed; the lists are in `torchtitan.toml`."""

from pathlib import Path
from typing import Any, NamedTuple

from titan_pt.config.errors import shown
from titan_pt.config.resolve.layers import Merged, Tables, parse_toml


class Unused(NamedTuple):
    """A key without effect here: what to do instead, and its no-op values (None: all of them)."""

    hint: str
    noop: tuple[Any, ...] | None = None


_LISTS: dict[str, Any] = parse_toml(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


def _hint(text: str) -> str:
    return str(_LISTS["hints"].get(text, text))


UNUSED = {key: Unused(_hint(hint), *map(tuple, noop)) for key, (hint, *noop) in _LISTS["unused"].items()}
UNUSED_ITEMS: dict[str, list[str]] = _LISTS["unused_items"]
UNUSED_TABLES = {table: _hint(hint) for table, hint in _LISTS["unused_tables"].items()}
MODELS: dict[str, str] = _LISTS["models"]
RENAMED: dict[str, str] = _LISTS["renamed"]
FLAVORS: dict[str, dict[str, Tables]] = _LISTS["flavors"]
DATASETS: dict[str, Tables] = _LISTS["datasets"]


def drop_foreign(merged: Merged, problems: list[str]) -> list[str]:
    """Take TorchTitan's unused keys out of the tree: no-ops become one notice, the rest problems."""
    ignored = []
    for name, unused in UNUSED.items():
        *path, key = name.split(".")
        table = merged.table_at(path)
        if table is None or key not in table:
            continue
        value = table.pop(key)
        where = f"{name} = {shown(value)} ({merged.blame(*path, key)})"
        if unused.noop is None or any(type(value) is type(noop) and value == noop for noop in unused.noop):
            ignored.append(where)
        else:
            problems.append(f"{where}: titan_pt does not have this TorchTitan key; {unused.hint}")
    for name, unused_items in UNUSED_ITEMS.items():
        section, key = name.split(".")
        table = merged.table_at([section]) or {}
        value = table.get(key)
        if isinstance(value, list) and (dropped := [item for item in value if item in unused_items]):
            table[key] = [item for item in value if item not in dropped]
            ignored.append(f"{', '.join(map(shown, dropped))} in {name} ({merged.blame(section, key)})")
    for name, hint in UNUSED_TABLES.items():
        *path, key = name.split(".")
        table = merged.table_at(path)
        if table is None or not isinstance(table.get(key), dict):
            continue
        rest = ", ".join(f"{name}.{leaf}" for leaf in _leaves(table.pop(key)))
        if rest:
            problems.append(
                f"{rest} ({merged.blame(*path, key)}): titan_pt does not have this TorchTitan table; {hint}"
            )
    if not ignored:
        return []
    return [f"ignored, TorchTitan keys that have no effect in titan_pt: {', '.join(ignored)}"]


def _leaves(table: Tables) -> list[str]:
    """The dotted names of all values."""
    names = []
    for key, value in table.items():
        names += [f"{key}.{leaf}" for leaf in _leaves(value)] if isinstance(value, dict) else [key]
    return names
