"""Tables and keys of a config class, and what kinds of values they take."""

import typing
from typing import Any

from pydantic.fields import FieldInfo

from titan_pt.config.schema.job_config import JobConfig, Section


def sections(kind: type[Section], above: str = "") -> dict[str, type[Section]]:
    """The type of every table by its dotted name, tables inside of tables included."""
    found: dict[str, type[Section]] = {}
    for name, info in kind.model_fields.items():
        if table := table_of(info.annotation):
            found |= {f"{above}{name}": table, **sections(table, f"{above}{name}.")}
    return found


def keys(config_type: type[JobConfig]) -> dict[str, FieldInfo]:
    """The field of every "section.key"."""
    return {
        f"{section}.{key}": info
        for section, section_type in sections(config_type).items()
        for key, info in section_type.model_fields.items()
        if not table_of(info.annotation)
    }


def table_of(annotation: Any) -> type[Section] | None:
    """The type of the table where the annotation is one, or one that may be left out; else None."""
    kinds = (annotation,) if isinstance(annotation, type) else typing.get_args(annotation)
    is_list = typing.get_origin(annotation) is list
    return next((k for k in kinds if not is_list and isinstance(k, type) and issubclass(k, Section)), None)


def rows_of(annotation: Any) -> type[Section] | None:
    """The type of one row where the annotation is an array of tables, else None."""
    if typing.get_origin(annotation) is list:
        item = typing.get_args(annotation)[0]
        return item if isinstance(item, type) and issubclass(item, Section) else None
    return next((rows for arg in typing.get_args(annotation) if (rows := rows_of(arg))), None)


def holds(annotation: Any, kind: type) -> bool:
    """Whether a field may be of that plain type: `bool | None` may be bool."""
    if annotation is kind or typing.get_origin(annotation) is kind:
        return True
    return typing.get_origin(annotation) not in (list, typing.Literal) and any(
        holds(arg, kind) for arg in typing.get_args(annotation)
    )
