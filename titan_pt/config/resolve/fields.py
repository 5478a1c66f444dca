"""Tables and keys of a config class, their types as a user reads them, and hints for unknown names."""

import typing
from collections.abc import Sequence
from typing import Any

from pydantic.fields import FieldInfo

from titan_pt.config.errors import closest, nearest, one_of
from titan_pt.config.resolve.torchtitan import RENAMED, UNUSED_TABLES
from titan_pt.config.schema.job_config import JobConfig, Section
from titan_pt.protocols.trainer_spec import trainers_with_section

Path = Sequence[str | int]
_SURE = 0.75


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


def type_name(annotation: Any) -> str:
    """A type as a user reads it: `int`, `a | b`, `list of str`."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_name(args[0])
    if origin is typing.Literal:
        return " | ".join(str(arg) for arg in args)
    if rows_of(annotation):
        return "array of tables"
    if origin is list:
        return f"list of {type_name(args[0])}"
    if args:
        return " | ".join(type_name(arg) for arg in args if arg is not type(None))
    return getattr(annotation, "__name__", str(annotation))


def table_type(config_type: type[JobConfig], path: Path) -> type[Section] | None:
    """The type of the table or row at `path`, such as ("data", "sources", 0), or None."""
    kind: type[Section] = config_type
    for part in path:
        if isinstance(part, int):
            continue
        info = kind.model_fields.get(part)
        annotation = info.annotation if info else None
        rows = annotation if isinstance(annotation, type) else rows_of(annotation)
        if rows is None or not issubclass(rows, Section):
            return None
        kind = rows
    return kind


def unknown(config_type: type[JobConfig], path: Path) -> str:
    """Why there is nothing at `path`, and what the user may have meant."""
    name = ".".join(part for part in path if isinstance(part, str))
    if name in RENAMED:
        return f"unknown key; in titan_pt it is {RENAMED[name]}"
    for table, hint in UNUSED_TABLES.items():
        if name.startswith(f"{table}."):
            return f"titan_pt does not have this TorchTitan table; {hint}"
    section, key, known = str(path[0]), str(path[-1]), sections(config_type)
    if key == "extends":
        return "unknown key; extends stands at the top of a file, before its first table"
    if section not in known:
        return _unknown_table(config_type, section, name)
    whole = ".".join(map(str, path[:2]))
    if len(path) > 2 and not isinstance(path[2], int) and _is_array_of_tables(config_type, whole):
        return f"not a flag; write the rows in the file, or all of them in --{whole} '[{{name = \"...\"}}]'"
    holder = table_type(config_type, path[:-1])
    if holder is None or len(path) == 1:
        return f"not a key; the keys of [{section}] are {one_of(known[section].model_fields)}"
    hint = nearest(key, holder.model_fields)
    if hint:
        where = f"{section}." if len(path) == 2 else ""
        return f"unknown key{hint.replace('mean ', f'mean {where}')}"
    hint = _elsewhere(config_type, key) if len(path) == 2 else ""
    return f"unknown key{hint or f'; the keys are {one_of(holder.model_fields)}'}"


def _is_array_of_tables(config_type: type[JobConfig], name: str) -> bool:
    info = keys(config_type).get(name)
    return info is not None and rows_of(info.annotation) is not None


def _unknown_table(config_type: type[JobConfig], section: str, name: str) -> str:
    trainers = trainers_with_section(section)
    if trainers:
        choices = " or ".join(f'"{trainer}"' for trainer in trainers)
        return f"unknown table: it belongs to job.trainer = {choices}"
    full = closest(name, keys(config_type), cutoff=_SURE) if "." in name else None
    hint = f"; did you mean {full}?" if full else nearest(section, sections(config_type))
    hint = hint or _elsewhere(config_type, name.rpartition(".")[2])
    return f"unknown table or key{hint or f'; the tables are {one_of(sections(config_type))}'}"


def _elsewhere(config_type: type[JobConfig], key: str) -> str:
    """The right key, or nearly, in the wrong table."""
    names = {name.split(".")[1]: name for name in reversed(keys(config_type))}
    match = closest(key, names, cutoff=_SURE)
    return f"; did you mean {names[match]}?" if match else ""
