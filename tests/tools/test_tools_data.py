"""The tools that look at data: what they print, what they refuse."""

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import write_toml

from titan_pt.data.overlap import find_overlap, ngrams
from titan_pt.data.stream.mixture import holdout_hash
from titan_pt.run.exit_codes import ExitCode
from titan_pt.tools import data, prepare


def config_of(folder: Path, texts: list[str], **source: float) -> Path:
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    sources = [{"name": "mine", "path": str(folder / "a.jsonl"), **source}]
    return write_toml(folder, data={"sources": sources, "cache_dir": str(folder / "cache")}, training={"seq_len": 64})


def test_the_first_documents_are_those_of_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [f"Document {i} has " + "some words " * (i % 3 + 1) for i in range(40)]
    config = config_of(tmp_path, texts)
    assert data.main(["--job.config_file", str(config), "--num_documents", "3"]) == ExitCode.DONE
    printed = capsys.readouterr().out
    assert "--- row 0, stream 0: 65 tokens of 65" in printed and "tokens      0 to" in printed
    shown = [line for line in printed.splitlines() if line.startswith("[mine:")]
    assert len(shown) == 3
    number = int(shown[0][6:-1])
    assert texts[number] in printed


@pytest.mark.parametrize("source", [{}, {"max_epochs": 1.0}])
@pytest.mark.parametrize("streams", [1, 7])
def test_more_documents_than_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: dict[str, float], streams: int
) -> None:
    """All are shown once; then it ends, also where one stream is spent before the others."""
    texts = [f"Document {i} has " + "some words " * (i % 9 + 1) for i in range(40)] + [""]
    config = config_of(tmp_path, texts, **source)
    flags = [
        "--data.num_streams",
        str(streams),
        "--training.global_batch_size",
        "28",
        "--validation.holdout_fraction=0.1",
    ]
    assert data.main(["--job.config_file", str(config), "--num_documents", "1000", *flags]) == ExitCode.DONE
    printed = capsys.readouterr().out
    shown = [line for line in printed.splitlines() if line.startswith("[mine:")]
    trained = [text for text in texts if text and holdout_hash(text) / 2**64 >= 0.1]
    assert len(shown) == len(set(shown)) == len(trained) < 40
    assert printed.splitlines()[-1].startswith(
        "every source" if source else f"these are all documents of the run: {len(shown)}"
    )


def test_overlap(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"w{i}" for i in range(40)]
    evaluation = [" ".join(words[:20]), " ".join(words[20:]), "too short"]
    found = find_overlap(["before " + " ".join(words[3:17]).upper() + "!", "nothing"], evaluation)
    assert (found.documents, found.short, found.shared_documents, found.ngrams, found.shared_ngrams) == (2, 1, 1, 16, 2)
    assert len(list(ngrams("one two"))) == 0
    (tmp_path / "test.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in evaluation))
    config = config_of(tmp_path, [" ".join(words[2:18]), "other"])
    flags = ["--job.config_file", str(config), "--check_overlap", "--eval"]
    assert data.main([*flags, f"held={tmp_path / 'test.jsonl'}"]) == ExitCode.DONE
    printed = capsys.readouterr().out
    assert "| mine | held | 1 of 2 (50.00%) | 4 of 16 |" in printed
    assert "    1 of 3 questions are shorter than 13 words: they are not compared" in printed
    (tmp_path / "short.jsonl").write_text('{"text": "What is 1 + 1?"}\n')
    assert data.main([*flags, f"held={tmp_path / 'short.jsonl'}"]) == ExitCode.DONE
    printed = capsys.readouterr().out
    assert "| mine | held | none compared | 0 of 0 |" in printed and "1 of 1 questions are shorter" in printed
    assert data.main([*flags, "held"]) == ExitCode.USAGE
    assert "must be NAME=FILE" in capsys.readouterr().err


def test_prepare_as_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_of(tmp_path, ["some text", "more text"])
    flags = ["--job.config_file", str(config), "--output", str(tmp_path / "tokens")]
    assert prepare.main([*flags, "--source", "mine"]) == ExitCode.DONE
    assert json.loads((tmp_path / "tokens" / "prepared.json").read_text())["documents"] == 2
    assert prepare.main([*flags, "--source", "other"]) == ExitCode.USAGE
    assert "the config has mine" in capsys.readouterr().err


def test_documents_that_take_long_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = itertools.count(step=4.0)
    monkeypatch.setattr("titan_pt.run.log.time", SimpleNamespace(monotonic=lambda: next(now)))
    monkeypatch.setattr("titan_pt.run.progress.time", SimpleNamespace(monotonic=lambda: next(now)))
    config = config_of(tmp_path, ["one text", "another text", "a third"])
    arguments = ["--job.config_file", str(config), "--source", "mine", "--output", str(tmp_path / "shards")]
    assert prepare.main(arguments) == ExitCode.DONE
    assert "Prepare: 2 of 3 documents (67%)" in capsys.readouterr().err


def test_records_are_shown_with_what_is_learnt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    talk = [{"role": "user", "content": "Größe?"}, {"role": "assistant", "content": "北京"}]
    common = " ".join(f"w{i}" for i in range(16))
    rows = [{"messages": talk}, {"prompt": f"{common}:", "completion": " 7"}]
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = [{"name": "talks", "path": str(tmp_path / "talks.jsonl")}]
    tables = {"data": {"sources": sources, "cache_dir": str(tmp_path / "cache")}, "training": {"seq_len": 128}}
    config = write_toml(tmp_path, job={"trainer": "sft"}, **tables)
    flags = ["--job.config_file", str(config)]
    assert data.main([*flags, "--num_documents", "2"]) == ExitCode.DONE
    printed = capsys.readouterr().out
    assert "<|im_start|>user\nGröße?<|im_end|>\n<|im_start|>assistant\n⟦北京<|im_end|>⟧" in printed
    assert f"{common}:⟦ 7<|endoftext|>⟧" in printed
    (tmp_path / "test.jsonl").write_text(json.dumps({"text": common}) + "\n")
    assert data.main([*flags, "--check_overlap", "--eval", f"held={tmp_path / 'test.jsonl'}"]) == ExitCode.DONE
    assert "| talks | held | 1 of 1 (100.00%) |" in capsys.readouterr().out
    assert prepare.main([*flags, "--source", "talks", "--output", str(tmp_path / "tokens")]) == ExitCode.USAGE
    assert "job.trainer = 'sft': token shards hold plain text" in capsys.readouterr().err
