"""Write docs/keys.md, the reference of all keys, from the config sections: `python docs/make/keys.py`."""

import json
from collections.abc import Iterator
from pathlib import Path

from pydantic.fields import FieldInfo

from titan_pt.config.manager import config_class
from titan_pt.config.resolve.fields import rows_of, sections, table_of
from titan_pt.config.resolve.help import type_name
from titan_pt.config.schema.job_config import JobConfig, Section

PAGE = Path(__file__).parent.parent / "keys.md"
KINDS = ("pretrain", "sft", "grpo")
HEAD = """# All keys

<!-- Written by `python docs/make/keys.py` from the sections in titan_pt/config/schema/; do not edit by hand. -->

Every key of a TOML file is also a flag: `[training] steps` is `--training.steps`. This page is generated from the
sections that check your file, and a test holds it current. `titan-pt train --help` prints the same.

Sizes may be written `32K`, `10M` and `50B` (powers of ten), and times `"30m"`, `"72h"` and `"3d"`. A bare time is in
the unit of the key's name. Where a kind of training has a default of its own, the table says so.
"""


def render() -> str:
    """The whole page."""
    kinds = {kind: config_class(kind, "transformer")[0] for kind in KINDS}
    tables: dict[str, type[Section]] = {}
    for config_type in (config_class("pretrain", "transformer", "Muon")[0], *kinds.values()):
        tables |= {name: table for name, table in sections(config_type).items() if name not in tables}
    return "\n".join([HEAD, *(line for name, table in tables.items() for line in _table(name, table, kinds))])


def _table(name: str, table: type[Section], kinds: dict[str, type[JobConfig]]) -> Iterator[str]:
    own = {key: info for key, info in table.model_fields.items() if not table_of(info.annotation)}
    if own:
        yield from _rows(f"[{name}]", table, own, name, kinds)
    for key, info in own.items():
        if row := rows_of(info.annotation):
            yield from _rows(f"[[{name}.{key}]]", row, row.model_fields, "", kinds)


def _rows(
    header: str, table: type[Section], fields: dict[str, FieldInfo], section: str, kinds: dict[str, type[JobConfig]]
) -> Iterator[str]:
    yield f"## `{header}`\n"
    yield "| key | type | default | meaning |\n|---|---|---|---|"
    for key, info in fields.items():
        others = [
            f"{kind}: {_value(config_type.DEFAULTS[section][key])}"
            for kind, config_type in kinds.items()
            if key in config_type.DEFAULTS.get(section, {})
        ]
        cells = [f"`{key}`", _text(type_name(info.annotation)), "; ".join([_default(info), *others])]
        yield f"| {' | '.join(cells)} | {_text(info.description or '')} |"
    yield ""


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    return "unset" if info.default is None else _value(info.default)


def _value(value: object) -> str:
    """A default as it is written in TOML."""
    return f"`{json.dumps(value)}`".replace("|", "\\|")


def _text(text: str) -> str:
    """Text of a docstring as one cell, in which Markdown reads no marks but those of code."""
    parts = " ".join(text.split()).split("`")
    if len(parts) % 2 == 0:
        parts = ["\\`".join(parts)]
    return "`".join(part.replace("|", "\\|") if i % 2 else _escaped(part) for i, part in enumerate(parts))


def _escaped(text: str) -> str:
    for sign in ("\\", "*", "_", "|", "[", "]"):
        text = text.replace(sign, f"\\{sign}")
    return text.replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
    print(f"wrote {PAGE}")
