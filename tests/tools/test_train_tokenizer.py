"""Tokenizers of an experiment's own texts: what they read, what they leave out, and what is refused."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from helpers import write_toml
from tokenizer_helpers import TEXTS, build
from tool_helpers import tool_here

from titan_pt.data.stream.mixture import holdout_hash
from titan_pt.hf.tokenizer_training import CHAT_TOKENS, UNKNOWN, train_bpe
from titan_pt.tools import train_tokenizer

WORDS = [
    f"The {a}{b} has {n * 37} {b}{a} marks.\n"
    for n in range(9)
    for a in ["old", "new", "red"]
    for b in ("mill", "boat")
]


def config_of(folder: Path, sources: dict[str, list[Any]], trainer: str = "pretrain", **tables: Any) -> Path:
    """A TOML whose sources are these texts, or rows."""
    table = []
    for name, rows in sources.items():
        lines = [json.dumps(row if isinstance(row, dict) else {"text": row}) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        table.append({"name": name, "path": str(folder / f"{name}.jsonl"), **tables.pop(name, {})})
    data = {"sources": table, "cache_dir": str(folder / "cache")}
    return write_toml(folder, job={"trainer": trainer}, data=data, training={"seq_len": 64}, **tables)


def trained(config: Path, output: Path, *flags: object) -> dict[str, Any]:
    assert tool_here(train_tokenizer.main, "--job.config_file", config, "--output", output, *flags) == 0
    return json.loads((output / train_tokenizer.RECORD).read_text())


def test_it_reads_the_training_side_and_is_measured_on_the_other(tmp_path: Path) -> None:
    """What is held out is never read: its own words are no tokens. The rest is whole, however small."""
    held = [text for text in (f"zyzzyva{i} " * 9 for i in range(400)) if holdout_hash(text) / 2**64 < 0.1]
    texts = [text for text in WORDS if holdout_hash(text) / 2**64 >= 0.1]
    config = config_of(tmp_path, {"mine": [*texts, *held]}, validation={"holdout_fraction": 0.1})
    record = trained(config, tmp_path / "out", "--vocab_size", 290)
    tokenizer = build(tmp_path / "out")
    assert record["trained_on"] == {"mine": sum(len(text.encode()) for text in texts)}
    assert record["measured_on"] == "held-out" and record["measured_bytes"] == sum(map(len, held))
    assert record["bytes_per_token"] == sum(map(len, held)) / sum(len(tokenizer.encode(text)) for text in held)
    assert record["vocab_size"] == tokenizer.vocab_size == 290 and record["fingerprint"] == tokenizer.fingerprint
    assert len(tokenizer.encode(" marks")) == 1 and len(tokenizer.encode("zyzzyva")) > 4
    assert [tokenizer.decode(tokenizer.encode(text)) for text in TEXTS] == TEXTS
    assert list(tokenizer.special_ids) == list(CHAT_TOKENS) and tokenizer.eos_id == 287
    none = trained(config, tmp_path / "all", "--vocab_size", 300, "--validation.holdout_fraction", 1e-9)
    assert none["measured_on"] == "training" and len(build(tmp_path / "all").encode("zyzzyva")) == 1


def test_shares_and_bounds(tmp_path: Path) -> None:
    """Bytes by the sources' weights, a spent source's to the others, each document once, never above --max_bytes."""
    few, many = [f"x{i} y z " * 5 for i in range(40)], [f"w{i} " * 9 for i in range(100, 500)]
    config = config_of(tmp_path, {"few": few, "many": many}, few={"weight": 3.0}, many={"weight": 1.0})
    flags = ("--vocab_size", 270, "--validation.holdout_fraction", 1e-9, "--max_bytes")
    small = trained(config, tmp_path / "small", *flags, 1000)["trained_on"]
    assert sum(small.values()) == 1000 and 700 < small["few"] < 800
    large = trained(config, tmp_path / "large", *flags, "10K")["trained_on"]
    assert large == {"few": sum(map(len, few)), "many": 10_000 - sum(map(len, few))}


@pytest.mark.parametrize(("digits", "pieces"), [(1, list("12345")), (2, ["12", "34", "5"]), (3, ["123", "45"])])
def test_digits(digits: int, pieces: list[str]) -> None:
    rules = train_bpe(["x = 12345; " * 9] * 9, 400, digits)
    (found,) = ([rules.decode([i]) for i in ids] for ids in [rules.encode("12345").ids])
    assert found == pieces


def test_equal_texts_give_equal_rules_on_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    found = set()
    for parallel in ("false", "true", "true"):
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", parallel)
        found.add(train_bpe([*WORDS, *TEXTS] * 20, 400, 1).to_str())
    assert len(found) == 1


def test_characters(tmp_path: Path) -> None:
    config = config_of(tmp_path, {"mine": ["hello", "größe\n", "北"]}, validation={"holdout_fraction": 1e-9})
    record = trained(config, tmp_path / "out", "--characters")
    tokenizer = build(tmp_path / "out")
    letters = sorted(set("hellogröße\n北"))
    assert [tokenizer.decode([i]) for i in range(len(letters))] == letters
    assert tokenizer.vocab_size == record["vocab_size"] == len(letters) + 2
    text = "\nhell北ö"
    assert tokenizer.decode(tokenizer.encode(text)) == text and len(tokenizer.encode(text)) == len(text)
    assert tokenizer.encode("hxxe") == [letters.index("h"), *[tokenizer.special_ids[UNKNOWN]] * 2, letters.index("e")]


def test_of_records_what_is_said(tmp_path: Path) -> None:
    rows = [{"prompt": f"question{i}", "completion": f"answer{i}"} for i in range(50)]
    config = config_of(tmp_path, {"asked": rows}, "sft", validation={"holdout_fraction": 1e-9})
    trained(config, tmp_path / "out", "--vocab_size", 290)
    tokens = Counter(tuple(build(tmp_path / "out").encode(text)) for text in ("question", "completion", '": "'))
    assert sorted(map(len, tokens)) == [1, 4, 9] or len(min(tokens, key=len)) == 1


def test_names_of_special_tokens_are_no_text_where_a_source_reads_them_as_tokens(tmp_path: Path) -> None:
    texts = ["<|im_start|>user\nok<|im_end|>"] * 20
    seen = {}
    for special in (True, False):
        folder = tmp_path / str(special)
        folder.mkdir()
        config = config_of(folder, {"mine": texts}, mine={"special_tokens": special})
        trained(config, folder / "out", "--vocab_size", 280, "--validation.holdout_fraction", 1e-9)
        seen[special] = len(build(folder / "out").encode("im_start"))
    assert seen[True] > seen[False] == 2


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, out = config_of(tmp_path, {"mine": WORDS}), tmp_path / "out"
    (tmp_path / "named").mkdir()
    trained(config, out, "--vocab_size", 300)
    before = (out / "tokenizer.json").read_bytes()
    assert trained(config, out, "--vocab_size", 300)["settings"]["--vocab_size"] == 300
    assert "trained already" in capsys.readouterr().err
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "tokenizer.json").write_text("{}")
    for flags, said in (
        (("--vocab_size", 301, "--output", out), "another tokenizer, of --vocab_size 300"),
        (("--characters", "--output", out), "another tokenizer, of --vocab_size 300"),
        (("--vocab_size", 300, "--output", tmp_path / "theirs"), "without tokenizer_training.json"),
        (("--vocab_size", 258, "--output", out), "--vocab_size = 258: must be at least 259"),
        (("--vocab_size", 300, "--max_bytes", "much", "--output", out), "--max_bytes = 'much'"),
        (("--vocab_size", 300, "--max_bytes", "0", "--output", out), "--max_bytes = 0: must be at least 1"),
        (("--output", out), "--vocab_size --characters is required"),
        (("--vocab_size", 300, "--characters", "--output", out), "not allowed with argument"),
        (("--vocab_size", 300, "--output", config), "--output"),
    ):
        assert tool_here(train_tokenizer.main, "--job.config_file", config, *flags) == 2
        assert said in capsys.readouterr().err
    assert (out / "tokenizer.json").read_bytes() == before and not list(out.glob("tmp*"))
    flags = ("--characters", "--output", tmp_path / "e", "--validation.holdout_fraction", 1 - 1e-9)
    assert tool_here(train_tokenizer.main, "--job.config_file", config, *flags) == 2
    assert "every document is empty or held out" in capsys.readouterr().err
    assert not os.listdir(tmp_path / "e")
    named = config_of(tmp_path / "named", {"mine": ["<|im_start|>"] * 20}, mine={"special_tokens": True})
    assert tool_here(train_tokenizer.main, "--job.config_file", named, "--characters", "--output", tmp_path / "e") == 2
    assert "every text is empty or a special token" in capsys.readouterr().err
