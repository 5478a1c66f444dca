"""Tables and keys of a config class, and what kinds of values they take."""

import typing
from typing import Any

from pydantic.fields import FieldInfo

from titan_pt.config.schema.job_config import JobConfig, Section


def sections(config_type: type[JobConfig]) -> dict[str, type[Section]]:
    """The type of every table."""
    return {
        name: info.annotation
        for name, info in config_type.model_fields.items()
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section)
    }


def keys(config_type: type[JobConfig]) -> dict[str, FieldInfo]:
    """The field of every "section.key"."""
    return {
        f"{section}.{key}": info
        for section, section_type in sections(config_type).items()
        for key, info in section_type.model_fields.items()
    }


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
