"""Every key of the schema with values of every wrong kind: exit code 2 and one report, or 0; never a traceback."""

import datetime
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from titan_pt.config.manager import config_class, main
from titan_pt.config.resolve.fields import keys, rows_of

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


def changes(trainer: str) -> Iterator[tuple[str, str, Any]]:
    """(table, key, value) of each key, also of rows of tables, with each kind; of sft and grpo their own tables."""
    common = keys(config_class("pretrain", "transformer")[0])
    for name, info in keys(config_class(trainer, "transformer")[0]).items():
        if trainer != "pretrain" and name in common:
            continue
        section, _, key = name.rpartition(".")
        rows = rows_of(info.annotation)
        for value in KINDS.values():
            yield section, key, value
            yield from ((section, key, [{"name": "a", field: value}]) for field in (rows.model_fields if rows else ()))


@pytest.mark.parametrize("trainer", TRAINERS)
def test_no_value_ends_in_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, trainer: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UNSET", raising=False)
    path, tries, refused = tmp_path / "x.toml", 0, 0
    for section, key, value in changes(trainer):
        tree = {"job": {"trainer": trainer}, **TRAINERS[trainer]}
        if section.startswith("quantize."):
            tree["model"] = {"converters": [section]}
            text = f"{tomli_w.dumps(tree)}[{section}]\n{tomli_w.dumps({key: value})}"
        else:
            tree[section] = {**tree.get(section, {}), key: value}
            text = tomli_w.dumps(tree)
        path.write_text(text, encoding="utf-8")
        tries += 1
        try:
            code = main(["--job.config_file", str(path)])
        except Exception as error:
            pytest.fail(f"{type(error).__name__}: {error}\n{text}")
        out, err = capsys.readouterr()
        refused += code == 2
        if code == 2:
            assert not out and err.startswith("config error: "), text
            assert key in err or section == "model", (text, err)
        else:
            assert code == 0 and out.startswith("[job]"), text
    assert refused > tries / 2
    assert trainer != "pretrain" or tries > 2000
