"""What a key takes, in words, and what a wrong value was meant to be. Imported where a value is none of that."""

import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic.fields import FieldInfo

from titan_pt.config.errors import nearest, shown
from titan_pt.config.resolve.fields import holds, rows_of

_PLAIN = {bool: "true or false", int: "an integer", float: "a number", str: "text"}
_SWITCHES = {"yes": "true", "on": "true", "1": "true", "no": "false", "off": "false", "0": "false", "none": "false"}


def expected(info: FieldInfo, item: bool) -> str:
    """What the field takes, after "must be ", with its default.

    Args:
        item: what an item of the field's list takes.
    """
    annotation = info.annotation
    if item:
        lists = [a for a in (annotation, *typing.get_args(annotation)) if typing.get_origin(a) is list]
        annotation = typing.get_args(lists[0])[0] if lists else annotation
    words = _words(annotation, [] if item else info.metadata)
    default = None if item or info.is_required() or info.default in (None, "", []) else info.default
    return words if default is None else f"{words} (default {_written(default)})"


def meant(info: FieldInfo, value: Any) -> str:
    """The text "; did you mean ...?" for a value that is a slip of one that is allowed; empty where it is none."""
    text = value.lower() if isinstance(value, str) else shown(value)
    if holds(info.annotation, bool) and text in _SWITCHES:
        return f"; did you mean {_SWITCHES[text]}?"
    if holds(info.annotation, bool) and value in ("true", "false"):
        return f"; did you mean {value}, without quotes?"
    return nearest(text, _choices(info.annotation)) if isinstance(value, str) else ""


def rows_for(name: str, value: Any) -> str:
    """How to write the array of tables that was given as text: a file, or the name of a row."""
    if not isinstance(value, str) or not value or any(c in value for c in "[]{}'\"\n"):
        return ""
    is_path = any(c in value for c in "./*") and name.endswith("sources")
    row = f'name = "{Path(value).stem.strip("*") or "mine"}", path = "{value}"' if is_path else f'name = "{value}"'
    lines = row.replace(", path", "\n    path")
    return f"; on the command line: --{name} '[{{{row}}}]', in a file:\n    [[{name}]]\n    {lines}"


def _words(annotation: Any, metadata: list[Any]) -> str:
    return " or ".join(dict.fromkeys(_alternatives(annotation, metadata)))


def _alternatives(annotation: Any, metadata: list[Any]) -> Iterator[str]:
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        yield from _alternatives(args[0], [*args[1:], *metadata])
    elif origin is typing.Literal:
        yield ", ".join(map(_written, args[:-1])) + " or " * (len(args) > 1) + _written(args[-1])
    elif origin is list:
        yield "an array of tables" if rows_of(annotation) else f"a list, each {_words(args[0], [])}"
    elif origin is dict:
        yield "a table"
    elif args:
        for arg in args:
            if arg is not type(None):
                yield from _alternatives(arg, metadata)
    else:
        yield " ".join(filter(None, [_PLAIN.get(annotation, "a table"), _range(metadata)]))


def _range(metadata: list[Any]) -> str:
    bounds = [bound for entry in metadata for bound in getattr(entry, "metadata", None) or [entry]]
    words = [f"above {b.gt:,.15g}" for b in bounds if isinstance(b, Gt)]
    words += [f"of at least {b.ge:,.15g}" for b in bounds if isinstance(b, Ge)]
    words += [f"below {b.lt:,.15g}" for b in bounds if isinstance(b, Lt)]
    words += [f"at most {b.le:,.15g}" for b in bounds if isinstance(b, Le)]
    words += ["that is not empty" for b in bounds if isinstance(b, MinLen)]
    return " and ".join(words)


def _choices(annotation: Any) -> list[str]:
    if typing.get_origin(annotation) is typing.Literal:
        return [str(arg) for arg in typing.get_args(annotation)]
    return [choice for arg in typing.get_args(annotation) for choice in _choices(arg)]


def _written(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else shown(value)
