"""The text of `--help`: every key of a config class with its meaning, type and default."""

import argparse
import re
import typing
from typing import Any

from pydantic.fields import FieldInfo

from titan_pt.config.resolve.fields import holds, keys, rows_of, sections, table_of
from titan_pt.config.schema.job_config import JobConfig, Section

_OWN_HEADER = re.compile(r"^\[+[^\]]*\]+ *")


def help_text(config_type: type[JobConfig]) -> str:
    """Every key with its meaning, type and default, grouped by table."""
    parser = argparse.ArgumentParser(
        prog="titan-pt train",
        usage="%(prog)s FILE.toml [--section.key VALUE ...], or a shipped name for FILE.toml (titan-pt ls)",
        description="Command line > TOML file > the files it extends > default. A flag is written --a.b value or\n"
        '--a.b=value, a boolean also --a.b alone; lists are TOML, \'["a", "b"]\', or a,b. -h, --help: this text.',
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    for section, section_type in sections(config_type).items():
        group = parser.add_argument_group(_title(f"[{section}]", section_type))
        for key, info in section_type.model_fields.items():
            if table_of(info.annotation):
                continue
            bare: dict[str, Any] = {"nargs": "?"} if holds(info.annotation, bool) else {}
            group.add_argument(f"--{section}.{key}", metavar="VALUE", help=_meaning(info), **bare)
    for name, info in keys(config_type).items():
        rows = rows_of(info.annotation)
        if rows:
            group = parser.add_argument_group(_title(f"[[{name}]]", rows), "keys of a row, not flags")
            for key, field in rows.model_fields.items():
                group.add_argument(key, help=_meaning(field))
    return parser.format_help()


def _title(header: str, kind: type[Section]) -> str:
    """The table's header, then the first line of its docstring without the header it may begin with."""
    first = (kind.__doc__ or "").partition("\n")[0]
    return f"{header} {_OWN_HEADER.sub('', first)}".rstrip(" .")


def _meaning(info: FieldInfo) -> str:
    default = "unset" if info.default is None else repr(info.default)
    needed = "required" if info.is_required() else f"default {default}"
    return f"{info.description or ''} ({type_name(info.annotation)}; {needed})".strip().replace("%", "%%")


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
    if origin is dict:
        return f"table of {type_name(args[1])}"
    if args:
        return " | ".join(type_name(arg) for arg in args if arg is not type(None))
    return getattr(annotation, "__name__", str(annotation))
