"""The one validation of the merged tree, and its mistakes in a user's words."""

import re
from typing import Any

from pydantic import ValidationError

from titan_pt.config.errors import dotted, shown
from titan_pt.config.resolve.fields import rows_of, table_type, unknown
from titan_pt.config.resolve.layers import Merged, Tables
from titan_pt.config.schema.job_config import JobConfig

Path = tuple[str | int, ...]


def validate(config_type: type[JobConfig], merged: Merged, problems: list[str]) -> tuple[JobConfig | None, set[str]]:
    """The config of all valid values and the names of the invalid ones, whose problems are appended.

    The config is None where not even that exists: a required key is missing.
    """
    tables: dict[Any, Any] = {
        name: dict(table) if isinstance(table, dict) else table for name, table in merged.tables.items()
    }
    try:
        return config_type.model_validate(tables), set()
    except ValidationError as error:
        mistakes = error.errors(include_url=False)
    invalid = set()
    for mistake in mistakes:
        path = _path(merged.tables, mistake["loc"], missing=mistake["type"] == "missing")
        problems.append(f"{dotted(path)}{_describe(config_type, merged, path, mistake)}")
        invalid.add(path[:2])
    for section, *key in invalid:
        if key and isinstance(tables.get(section), dict):
            tables[section].pop(key[0], None)
        else:
            tables.pop(section, None)
    try:
        return config_type.model_validate(tables), {dotted(path) for path in invalid}
    except ValidationError:
        return None, set()


def _path(tables: Tables, location: Path, *, missing: bool) -> Path:
    """pydantic's location without the names of the branches of unions, which are no keys of the tree."""
    path: list[str | int] = []
    node: Any = tables
    for i, part in enumerate(location):
        is_key = isinstance(node, dict) and part in node
        if is_key or (isinstance(node, list) and isinstance(part, int)):
            node = node[part]
            path.append(part)
        elif missing and i == len(location) - 1:
            path.append(part)
    return tuple(path)


def _describe(config_type: type[JobConfig], merged: Merged, path: Path, mistake: Any) -> str:
    origin = merged.blame(*path)
    if mistake["type"] == "extra_forbidden":
        return f" ({origin}): {unknown(config_type, path)}"
    if mistake["type"] == "missing":
        return f" ({origin}): missing"
    message = re.sub(r"^(Value error, |Input |String |List )", "", mistake["msg"])
    holder = table_type(config_type, path[:-1])
    info = holder.model_fields.get(str(path[-1])) if holder else None
    if mistake["type"] in ("model_type", "model_attributes_type"):
        message = f"must be a table, {_header(path)}"
    elif info and rows_of(info.annotation) and mistake["type"] == "list_type":
        message = f"must be an array of tables, [[{dotted(path)}]]"
    return f" = {shown(mistake['input'])} ({origin}): {message}"


def _header(path: Path) -> str:
    return f"[[{dotted(path[:-1])}]]" if isinstance(path[-1], int) else f"[{dotted(path)}]"
