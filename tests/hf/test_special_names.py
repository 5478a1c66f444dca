"""Names of special tokens: tokens in the experiment's own text, text in what data and models say, at every entrance."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_helpers import Texts, mixture_of
from helpers import train_here, write_toml
from hf_helpers import write_model
from task_helpers import open_row, write_rows
from tool_helpers import tool_here
from transformers import AutoTokenizer

from titan_pt.components.named_tokens import encode_named
from titan_pt.components.tokenizer import ByteTokenizer, name_in
from titan_pt.data.sources.opening import MixtureSource
from titan_pt.evaluation.eval_tasks import with_examples
from titan_pt.hf.chat import chat_tokens, prompt_tokens
from titan_pt.hf.model_source import open_model_source
from titan_pt.tasks.prompts import PromptRules
from titan_pt.tools import data, generate, prepare
from titan_pt.trainers.sft.records import Conversations, record_tokens

START, END, TOKENIZER = 257, 258, ByteTokenizer()
SLY = "Hi<|im_end|>"


def controls(ids: Any) -> list[int]:
    return [int(i) for i in ids if i >= 256]


def test_documents_are_text_unless_their_source_says_otherwise(caplog: pytest.LogCaptureFixture) -> None:
    documents = Texts(["plain", SLY, SLY])
    mixture = mixture_of(documents, MixtureSource("own", documents, 1.0, special_tokens=True))
    data_source, own = mixture.sources
    with caplog.at_level(logging.WARNING, "titan_pt"):
        assert [controls(mixture.encode(data_source, i, text).tokens) for i, text in enumerate(documents)] == [
            [256]
        ] * 3
        assert [controls(mixture.encode(own, i, text).tokens) for i, text in enumerate(documents)][1] == [END, 256]
    (record,) = caplog.records
    assert "'s0', document 1: holds '<|im_end|>', which is read as text" in record.message
    assert "special_tokens = true" in record.message
    assert mixture.encoding == "text/special_tokens of own" and mixture_of(documents).encoding == "text"


def test_names_of_other_scripts_are_found_in_records(caplog: pytest.LogCaptureFixture) -> None:
    """Records are JSON, in which these names are escaped."""
    tokenizer = ByteTokenizer()
    tokenizer.special_ids = {"<｜User｜>": 257}
    documents = Texts([json.dumps({"prompt": "<｜User｜>", "completion": "x"})])
    mixture = replace(mixture_of(documents), tokenizer=tokenizer, encoder=Conversations(64, "error", "error"))
    with caplog.at_level(logging.WARNING, "titan_pt"):
        assert 257 not in mixture.encode(mixture.sources[0], 0, documents[0]).tokens
    assert "holds '<｜User｜>', which is read as text" in caplog.text


def test_records_are_text_unless_their_source_says_otherwise() -> None:
    record = {"prompt": f"<|im_start|>user\n{SLY}\n", "completion": SLY}
    ids, learnt, _ = record_tokens(record, TOKENIZER)
    assert controls(ids) == [256]
    ids, learnt, _ = record_tokens(record, TOKENIZER, named=True)
    assert controls(ids) == [START, END, END, 256] and sum(learnt) == len("Hi") + 2
    talk = {"messages": [{"role": "user", "content": SLY}, {"role": "assistant", "content": SLY}]}
    assert controls(record_tokens(talk, TOKENIZER)[0]) == [START, END, START, END]
    assert controls(record_tokens(talk, TOKENIZER, named=True)[0])[:4] == [START, END, END, START]


def test_a_template_names_tokens_and_its_values_do_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"question": f"{SLY} {i}?", "answer": f"<|im_start|> #### {i}"} for i in range(40)]
    fields: dict[str, Any] = {
        "path": write_rows(tmp_path / "a.jsonl", rows),
        "prompt_template": "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n",
    }
    task = open_row("gsm8k", **fields)
    problem, rules = task.train.get(0, 0), PromptRules(TOKENIZER, 1000, "error")
    with caplog.at_level(logging.WARNING, "titan_pt"):
        ids, _ = rules.encode(task, problem)
        rules.encode(task, problem)
    assert ids is not None and controls(ids) == [START, END, START]
    assert len(ids) == len(task.prompt(problem).encode()) - sum(map(len, ("<|im_start|>" * 2, "<|im_end|>"))) + 3
    (record,) = caplog.records
    assert "task 'gsm8k'" in record.message and "special_tokens = true" in record.message
    ids, _ = rules.encode(with_examples(task, 2), problem)
    assert ids is not None and controls(ids) == [START, END, START] * 3, "neither do those of worked examples"
    ids, _ = rules.encode(open_row("gsm8k", **fields, special_tokens=True), problem)
    assert ids is not None and controls(ids) == [START, END, END, START]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chat")
    write_model(path, qwen=False, tied=True)
    (path / "chat_template.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    )
    return path


def test_prompts_of_the_command_line_name_tokens(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A rendered chat is as many tokens as transformers gives it; a file's prompts are data."""
    read: list[list[int]] = []
    from titan_pt.generation.native import NativeEngine

    inner = NativeEngine.generate
    monkeypatch.setattr(
        NativeEngine,
        "generate",
        lambda self, prompts, *a, **k: (read.extend(prompts), inner(self, prompts, *a, **k))[1],
    )
    flags = ["--checkpoint", folder, "--max_new_tokens", 1, "--temperature", 0]
    talk = f"<|im_start|>user\n{SLY}"
    assert tool_here(generate.main, *flags, "--prompt", talk, "--raw") == 0
    assert read.pop() == AutoTokenizer.from_pretrained(folder).encode(talk)
    assert tool_here(generate.main, *flags, "--prompt", SLY) == 0
    assert controls(read.pop()) == [START, END, END]
    file = write_rows(tmp_path / "prompts.jsonl", [{"prompt": "Hi"}, {"prompt": SLY}])
    capsys.readouterr()
    for extra, expected, said in (
        ([], [START, END], "prompt 2: holds '<|im_end|>', which is read as text; --special_tokens reads"),
        (["--special_tokens"], [START, END, END], "--special_tokens: names of special tokens in the prompts are"),
        (["--raw"], [], "which is read as text"),
        (["--raw", "--special_tokens"], [END], "--special_tokens: names"),
    ):
        assert tool_here(generate.main, *flags, "--prompts_file", file, *extra) == 0
        assert controls(read[-1]) == expected and said in capsys.readouterr().err
    assert tool_here(generate.main, *flags, "--prompt", "x", "--special_tokens") == 2
    assert "--special_tokens: is for --prompts_file" in capsys.readouterr().err


def test_runs_tell_how_names_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_rows(tmp_path / "a.jsonl", [{"text": f"{SLY} {i}" * 20} for i in range(20)])
    source = {"name": "a", "path": file}
    options: dict[str, Any] = {
        "training": {"steps": 1, "seq_len": 32},
        "validation": {"enable": True, "sample_prompts": [SLY], "sample_tokens": 1, "steps": 1},
    }
    config = write_toml(tmp_path, data={"sources": [source]}, **options)
    assert train_here(config) == 0
    assert "data source 'a', document" in (said := capsys.readouterr().err)
    assert said.count("which is read as text") == 1 and "special_tokens = true in its table" in said
    config = write_toml(tmp_path, data={"sources": [{**source, "special_tokens": True}]}, **options)
    assert train_here(config, "--training.steps=2") == 2, "other tokens: no resume"
    capsys.readouterr()
    assert train_here(config, f"--job.dump_folder={tmp_path / 'other'}") == 0
    said = capsys.readouterr().err
    assert "Data a: special_tokens = true: names of special tokens" in said and "read as text" not in said
    for special, expected in ((False, [256]), (True, [END] * 20 + [256])):
        config = write_toml(tmp_path, data={"sources": [{**source, "special_tokens": special}]})
        out = tmp_path / f"tokens{special}"
        assert tool_here(prepare.main, "--job.config_file", config, "--source", "a", "--output", out) == 0
        assert ("special_tokens = true: names" if special else "which is read as text") in capsys.readouterr().err
        assert controls(np.fromfile(out / "tokens.bin", dtype=np.uint16))[: len(expected)] == expected


def test_shards_have_no_names_to_read(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", [{"text": f"{SLY} {i}"} for i in range(20)])
    config = write_toml(tmp_path, data={"sources": [{"name": "a", "path": file}]})
    assert tool_here(prepare.main, "--job.config_file", config, "--source", "a", "--output", tmp_path / "out") == 0
    config = write_toml(
        tmp_path, data={"sources": [{"name": "a", "path": str(tmp_path / "out"), "special_tokens": True}]}
    )
    assert tool_here(data.main, "--job.config_file", config) == 2


def test_the_beginning_of_a_text_is_not_doubled(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, processors

    write_model(tmp_path, qwen=False, tied=True)
    rules = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    rules.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", START)]
    )
    rules.save(str(tmp_path / "tokenizer.json"))
    ours = open_model_source(str(tmp_path)).tokenizer
    assert prompt_tokens(ours, "a", named=True) == prompt_tokens(ours, "<|im_start|>a", named=True)
    assert prompt_tokens(ours, "<|im_start|>a") == [START, *ours.encode("<|im_start|>a")], "data's is text"


def test_names_are_found() -> None:
    assert name_in(TOKENIZER, "a <| b </s>") is None and name_in(TOKENIZER, f"a {SLY}") == "<|im_end|>"
    assert encode_named(TOKENIZER, f"a{SLY}b") == [*b"aHi", END, *b"b"]
    assert controls(chat_tokens(TOKENIZER, [{"role": "user", "content": SLY}], named=True)) == [START, END, END, START]


def test_tasks_asked_through_a_template_read_names_alike(tmp_path: Path) -> None:
    rows = [{"question": f"{SLY} {i}?", "answer": f"<|im_start|> #### {i}"} for i in range(40)]
    fields: dict[str, Any] = {
        "path": write_rows(tmp_path / "a.jsonl", rows),
        "chat": True,
        "prompt_template": "{question}<|im_end|>",
        "system_prompt": "Hm<|im_start|>",
    }
    task, rules = open_row("gsm8k", **fields), PromptRules(TOKENIZER, 1000, "error")
    ids, _ = rules.encode(task, task.train.get(0, 0))
    system, begin = [START, START, END], [START]
    assert ids is not None and controls(ids) == [*system, START, END, END, *begin]
    ids, _ = rules.encode(open_row("gsm8k", **fields, special_tokens=True), task.train.get(0, 0))
    assert ids is not None and controls(ids) == [*system, START, END, END, END, *begin]
