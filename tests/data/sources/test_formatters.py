"""Rows as texts: the built-in formatters, a user's own, and what a name alone means."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_helpers import open_one

from titan_pt.config.builtin_datasets import complete
from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.job_config import Source
from titan_pt.data.builtin.formatters import format_gsm8k, format_medqa
from titan_pt.data.sources.formatters import FORMATTERS, find_formatter, register_formatter

MEDQA = {
    "question": "Which drug? ",
    "options": {"A": "One", "C": "Three", "B": "Two", "D": None},
    "answer_idx": "B",
    "answer": "Two",
}


def test_medqa() -> None:
    assert format_medqa(MEDQA) == "Question: Which drug?\nA. One\nB. Two\nC. Three\nAnswer: B. Two\n"


def test_gsm8k() -> None:
    row = {"question": "How many?", "answer": "She sold 48/2 = <<48/2=24>>24.\n#### 24"}
    assert format_gsm8k(row) == "Question: How many?\nAnswer: She sold 48/2 = 24.\n#### 24\n"


def test_a_name_says_dataset_subset_and_formatter() -> None:
    medqa = complete(Source(name="medqa"))
    assert (medqa.dataset, medqa.formatter) == ("GBaker/MedQA-USMLE-4-options", "medqa")
    edu = complete(Source(name="fineweb_edu", subset="sample-100BT"))
    assert (edu.dataset, edu.subset, edu.formatter) == ("HuggingFaceFW/fineweb-edu", "sample-100BT", "text")
    local = complete(Source(name="gsm8k", path="x.jsonl"))
    assert (local.dataset, local.formatter) == (None, "gsm8k")
    column = complete(Source(name="gsm8k", path="x.jsonl", text_field="answer"))
    assert column.formatter is None
    other = Source(name="medqa", dataset="me/mine")
    assert complete(other) == other


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_formatted_files(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"dev.{ending}"
    if ending == "jsonl":
        path.write_text(json.dumps(MEDQA) + "\n" + json.dumps({**MEDQA, "question": "Other"}) + "\n")
    else:
        pq.write_table(pa.Table.from_pylist([MEDQA, {**MEDQA, "question": "Other"}]), path)
    found = open_one(Source(name="medqa", path=str(path)), seed=1, cache_dir=str(tmp_path))
    assert [found[0], found[1]] == [format_medqa(MEDQA), format_medqa({**MEDQA, "question": "Other"})]
    plain = open_one(Source(name="mine", path=str(path), text_field="answer"), seed=1, cache_dir=str(tmp_path))
    assert plain[0] == "Two" and plain.fingerprint != found.fingerprint


def test_a_local_dataset_folder_is_formatted(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_text(json.dumps(MEDQA) + "\n")
    source = Source(name="questions", dataset=str(folder), formatter="medqa")
    assert open_one(source, seed=1, cache_dir=str(tmp_path / "cache"))[0] == format_medqa(MEDQA)


def test_a_formatter_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FORMATTERS, "_registered", {})
    register_formatter("titled", ("title", "body"), lambda row: f"# {row['title']}\n{row['body']}")
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"title": "T", "body": "B"}) + "\n" + json.dumps({"title": "T"}) + "\n")
    source = Source(name="mine", path=str(path), formatter="titled")
    with pytest.raises(ConfigError, match=r"a\.jsonl, line 2: no 'body'"):
        open_one(source, seed=1, cache_dir=str(tmp_path))
    path.write_text(json.dumps({"title": "T", "body": "B"}) + "\n")
    assert open_one(source, seed=1, cache_dir=str(tmp_path))[0] == "# T\nB"
    with pytest.raises(ValueError, match="registered already"):
        register_formatter("medqa", (), str)


def test_what_a_formatter_cannot_read_is_told(tmp_path: Path) -> None:
    def problem(row: dict[str, Any], **options: Any) -> str:
        (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
        with pytest.raises(ConfigError) as caught:
            open_one(Source(name="mine", path=str(tmp_path / "a.jsonl"), **options), seed=1, cache_dir=str(tmp_path))
        return str(caught.value)

    assert "line 1: formatter 'medqa' cannot read it: KeyError: 'Z'" in problem(
        {**MEDQA, "answer_idx": "Z"}, formatter="medqa"
    )
    assert "formatter = 'medqu': unknown; known are" in problem(MEDQA, formatter="medqu")
    assert "leave text_field out" in problem(MEDQA, formatter="medqa", text_field="answer")
    assert find_formatter(Source(name="x")).columns == ("text",)


@pytest.mark.realdata
def test_real_questions(realdata: Path, tmp_path: Path) -> None:
    for name, file, count in (("medqa", "medqa/dev.jsonl", 1272), ("gsm8k", "gsm8k/train.jsonl", 7473)):
        documents = open_one(Source(name=name, path=str(realdata / file)), seed=1, cache_dir=str(tmp_path))
        assert len(documents) == count
        texts = [documents[i] for i in range(0, count, 97)]
        assert all(text.startswith("Question: ") and "\nAnswer: " in text and "<<" not in text for text in texts)
