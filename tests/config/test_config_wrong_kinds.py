"""Every key of the schema with values of every wrong kind: exit code 2 and one report, or 0; never a traceback."""

import datetime
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from pydantic import ValidationError

from titan_pt.config.manager import config_class, main
from titan_pt.config.resolve.fields import keys, rows_of, sections
from titan_pt.config.schema.job_config import Section

KINDS: dict[str, Any] = {
    "true": True,
    "0": 0,
    "-1": -1,
    "2**63 - 1": 2**63 - 1,
    "2**70": 2**70,
    "0.5": 0.5,
    "-0.0": -0.0,
    "1e308": 1e308,
    "nan": math.nan,
    "inf": math.inf,
    "empty": "",
    "text": "x",
    "unset variable": "$UNSET/${",
    "no user": "~nobody-of-that-name",
    "long": "a" * 5000,
    "NUL": "a\0b",
    "any script": "größe 日本 \u2028 \ufeff",
    "number as text": "12",
    "huge number as text": "9" * 5000,
    "digits of another script": "١٢",
    "size": "1e9B",
    "time": datetime.time(1),
    "date": datetime.date(2026, 11, 1),
    "[]": [],
    "[[]]": [[]],
    "[1]": [1],
    "[x]": ["x"],
    "{}": {},
    "{a = 1}": {"a": 1},
    "[{}]": [{}],
    "[{name}]": [{"name": "a", "weight": "b"}],
}


BASE = {"data": {"sources": [{"name": "python_stdlib"}]}}
TRAINERS = {"pretrain": BASE, "sft": BASE, "grpo": {"grpo": {"tasks": [{"name": "gsm8k"}]}}}


ALONE = 9
"""Every so many values are tried by themselves, too."""


def tables(trainer: str) -> Iterator[tuple[str, dict[str, type[Section]]]]:
    """(table, type of what holds each key) of all that pretraining has; of sft and grpo their own."""
    common = keys(config_class("pretrain", "transformer")[0])
    config_type = config_class(trainer, "transformer")[0]
    for section, holder in sections(config_type).items():
        own = [key for key in keys(config_type) if key.rpartition(".")[0] == section]
        if found := {key.rpartition(".")[2]: holder for key in own if trainer == "pretrain" or key not in common}:
            yield section, found


def changes(trainer: str) -> Iterator[tuple[str, dict[str, Any], set[str]]]:
    """(table, its keys with one kind of value, the names that the schema refuses), and rows with it in each field."""
    for section, holders in tables(trainer):
        for value in KINDS.values():
            wrong = {f"{section}.{key}" for key, holder in holders.items() if refuses(holder, {key: value}, key)}
            yield section, dict.fromkeys(holders, value), wrong
            for key, holder in holders.items():
                if rows := rows_of(holder.model_fields[key].annotation):
                    made = [{"name": f"a{n}", field: value} for n, field in enumerate(rows.model_fields)]
                    refused = [refuses(rows, row, field) for row, field in zip(made, rows.model_fields, strict=True)]
                    names = enumerate(rows.model_fields)
                    yield section, {key: made}, {f"{section}.{key}[{n}].{name}" for n, name in names if refused[n]}


def refuses(table: type[Section], values: dict[str, Any], key: str) -> bool:
    try:
        table.model_validate(values)
    except ValidationError as error:
        return any(mistake["loc"][0] == key for mistake in error.errors() if mistake["loc"])
    return False


@pytest.mark.parametrize("trainer", TRAINERS)
def test_no_value_ends_in_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, trainer: str
) -> None:
    """Of all keys of a table at once, which the report tells one by one, and of some keys alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UNSET", raising=False)
    path, tries, refused = tmp_path / "x.toml", 0, 0

    def try_out(section: str, values: dict[str, Any]) -> str:
        tree = {"job": {"trainer": trainer}, **TRAINERS[trainer]}
        if section.startswith("quantize."):
            tree["model"] = {"converters": [section]}
            text = f"{tomli_w.dumps(tree)}[{section}]\n{tomli_w.dumps(values)}"
        else:
            text = tomli_w.dumps({**tree, section: {**tree.get(section, {}), **values}})
        path.write_text(text, encoding="utf-8")
        try:
            code = main(["--job.config_file", str(path)])
        except Exception as error:
            pytest.fail(f"{type(error).__name__}: {error}\n{text}")
        out, err = capsys.readouterr()
        assert (code == 2 and not out and err.startswith("config error: ")) or (code == 0 and out.startswith("[job]"))
        return err if code else ""

    for section, values, wrong in changes(trainer):
        said = try_out(section, values)
        missing = {name for name in wrong if name not in said}
        assert section in ("job", "model") or not missing, (missing, said)
        for key in list(values)[tries % ALONE :: ALONE]:
            alone = try_out(section, {key: values[key]})
            assert not alone or key in alone or section == "model", (key, values[key], alone)
            refused += bool(alone)
        tries += len(values)
    assert refused > tries / ALONE / 2
    assert trainer != "pretrain" or tries > 2000
