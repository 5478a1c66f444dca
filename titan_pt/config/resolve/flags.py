"""The command line: one flag for every key of the config.

Three ways to write a flag (`--a.b value`, `--a.b=value`, a bare `--a.b` for booleans) are more than argparse takes, so
it only prints the help (`help.py`). Text becomes typed values here: only the field knows whether "5" is a number.
"""

from typing import Any

from pydantic import TypeAdapter, ValidationError

from titan_pt.config.resolve.fields import holds, keys, rows_of
from titan_pt.config.resolve.layers import Layer
from titan_pt.config.resolve.toml_files import parse_toml
from titan_pt.config.schema.job_config import JobConfig

ORIGIN = "command line"

Flags = list[tuple[str, str | None]]


def read_flags(argv: list[str]) -> Flags:
    """(name, text) of each flag, the text None where none follows; ("", text) for a value without a flag.

    A value that itself starts with "--" needs the form `--a.b=value`. The first argument, and a TOML file anywhere, are
    the experiment, as behind --job.config_file.
    """
    flags: Flags = []
    named = False
    for argument in argv:
        if argument in ("-h", "--help"):
            flags.append(("help", "true"))
        elif argument.startswith("--"):
            name, equals, text = argument[2:].partition("=")
            flags.append((name, text if equals else None))
        elif flags and flags[-1][1] is None:
            flags[-1] = (flags[-1][0], argument)
        else:
            names = not named and (argument.endswith(".toml") or (not flags and not argument.startswith("-")))
            flags.append(("job.config_file" if names else "", argument))
            named |= names
    return flags


def to_layer(flags: Flags, config_type: type[JobConfig], problems: list[str]) -> Layer:
    """The flags as a layer of typed values, the last of each name; what is no flag of this config joins `problems`."""
    known = keys(config_type)
    tables: dict[str, Any] = {}
    for name, text in {name: (name, text) for name, text in flags if name not in ("", "help")}.values():
        if name in known:
            annotation = known[name].annotation
            if text is not None or holds(annotation, bool):
                _set(tables, name, "true" if text is None else text, annotation)
            else:
                problems.append(
                    f"--{name} ({ORIGIN}): needs a value; one that starts with -- is written --{name}=VALUE"
                )
        else:
            from titan_pt.config.resolve.report import unknown_flag
            from titan_pt.config.resolve.torchtitan import UNUSED

            if name in UNUSED:  # whether it is a no-op is told from its value, later
                _set(tables, name, "true" if text is None else text, None)
                continue
            problems.append(f"--{name} ({ORIGIN}): {unknown_flag(config_type, name)}")
    for text in [text for name, text in flags if not name]:
        from titan_pt.config.resolve.report import stray

        problems.append(stray(text))
    return Layer(ORIGIN, tables)


def _set(tables: dict[str, Any], name: str, text: str, annotation: Any) -> None:
    *path, key = name.split(".")
    for part in path:
        tables = tables.setdefault(part, {})
    tables[key] = from_text(annotation, text)


def from_text(annotation: Any, text: str) -> Any:
    """The first reading of the text that has the field's type: as it stands, then as TOML; of no type, as TOML.

    Text of a list that is not TOML is split at commas. Where no reading fits, the likeliest one is returned;
    validation then says what is wrong with it.
    """
    readings = _toml_readings(text)
    if annotation is None:
        return [text, *readings][-1]
    if holds(annotation, list):
        readings = [value for value in readings if isinstance(value, list | dict)]
        readings = readings or [text if rows_of(annotation) else [p.strip() for p in text.split(",") if p.strip()]]
    else:
        readings = [text, *readings, *(_float(text) if holds(annotation, float) else [])]
    adapter = TypeAdapter(annotation)
    for reading in readings:
        try:
            adapter.validate_python(reading, strict=True)
        except ValidationError:
            continue
        return reading
    return readings[-1]


def _toml_readings(text: str) -> list[Any]:
    """The text as a TOML value, if it is one; TRUE and 1E9 are read too."""
    for literal in (text, text.lower()):
        try:
            document = parse_toml(f"value = {literal}")
        except ValueError:
            continue
        if document.keys() == {"value"}:
            return [document["value"]]
    return []


def _float(text: str) -> list[float]:
    """The text as Python reads it, which takes .5 and 1. too."""
    try:
        return [float(text)]
    except ValueError:
        return []
