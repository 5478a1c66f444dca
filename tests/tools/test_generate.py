"""tools.generate: one prompt, a file of them; streaming; seeds; quantized weights; wrong usage."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from task_helpers import write_rows
from tool_helpers import tool_here, train_known

from titan_pt.components.tokenizer import ByteTokenizer
from titan_pt.config.errors import ConfigError
from titan_pt.evaluation.scoring import likelihoods
from titan_pt.generation.native import NativeEngine
from titan_pt.generation.quantize import quantize_weights, weight_bytes
from titan_pt.generation.sampling import Sampling
from titan_pt.hf.model_source import ModelSource, open_model_source
from titan_pt.tools.generate import main, read_prompts
from titan_pt.tools.texts import TextStream

ASK, ANSWER = "Question: What is 3 + 4?\nAnswer:", " 3 + 4 = 7\n#### 7"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_known(tmp_path_factory.mktemp("known"))


@pytest.mark.parametrize("flags", [(), ("--dtype", "bfloat16"), ("--quantize", "int8"), ("--num_samples", 3)])
def test_only_the_text_is_printed(run: Path, capsys: pytest.CaptureFixture[str], flags: tuple[object, ...]) -> None:
    assert (
        tool_here(main, "--checkpoint", run, "--prompt", ASK, "--temperature", 0, "--max_new_tokens", 20, *flags) == 0
    )
    count = 3 if "--num_samples" in flags else 1
    assert capsys.readouterr().out == "\n\n".join([ANSWER] * count) + "\n"


def test_equal_seeds_give_equal_texts(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def text(seed: int) -> str:
        flags = ["--prompt", "W", "--temperature", 3, "--max_new_tokens", 20, "--seed", seed]
        assert tool_here(main, "--checkpoint", run, *flags) == 0
        return capsys.readouterr().out

    assert text(1) == text(1) != text(2)


def test_a_file_of_prompts_is_answered(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": ASK}, {"prompt": "Question"}, {"prompt": ASK}]
    flags = ["--prompts_file", write_rows(tmp_path / "prompts.jsonl", rows), "--temperature", 0, "--max_new_tokens", 18]
    assert tool_here(main, "--checkpoint", run, *flags, "--num_samples", 2, "--max_rows", 4) == 0
    printed = capsys.readouterr().out
    found = [json.loads(line) for line in printed.splitlines()]
    assert [row["prompt"] for row in found] == [row["prompt"] for row in rows]
    assert found[0] == found[2] == {"prompt": ASK, "completions": [ANSWER] * 2, "finish_reasons": ["stop"] * 2}
    assert tool_here(main, "--checkpoint", run, *flags, "--num_samples", 2, "--output", tmp_path / "out.jsonl") == 0
    assert (tmp_path / "out.jsonl").read_text() == printed, "in one part or in two"


def test_noise_depends_on_the_prompt_alone(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompts.txt").write_text("W\n\nW\nQ\n")
    flags = ["--prompts_file", tmp_path / "prompts.txt", "--temperature", 3, "--max_new_tokens", 16]
    printed = []
    for max_rows in (1, 8):
        assert tool_here(main, "--checkpoint", run, *flags, "--max_rows", max_rows) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    first, second = (json.loads(line)["completions"] for line in printed[0].splitlines()[:2])
    assert first != second, "the same prompt twice is two prompts"


def test_characters_are_printed_whole() -> None:
    tokenizer, written = ByteTokenizer(), []
    stream = TextStream(tokenizer, [256], written.append)
    ids = [*tokenizer.encode("aé世"), 256]
    for end in range(1, len(ids) + 1):
        stream([ids[:end]])
    stream([ids], final=True)
    assert "".join(written) == "aé世" and all("\ufffd" not in part for part in written)
    stream([[*ids[:-1], 0xE4]], final=True)
    assert written[-1] == "\ufffd", "what never becomes whole is shown at the end"


def test_text_is_streamed(run: Path) -> None:
    source = open_model_source(str(run))
    seen: list[list[list[int]]] = []
    engine = NativeEngine(source.load("cpu", torch.float32), source.stop_ids, stride=1)
    prompt, greedy = source.tokenizer.encode(ASK), Sampling(30, temperature=0.0)
    (done,) = engine.generate([prompt], greedy, 1, watch=seen.append)
    assert [len(rows[0]) for rows in seen] == list(range(1, len(done.token_ids) + 1))
    assert seen[-1] == [done.token_ids]
    (other,) = NativeEngine(source.load("cpu", torch.float32), source.stop_ids).generate([prompt], greedy, 1)
    assert other == done


def test_int8_weights_are_small_and_close(run: Path) -> None:
    source = open_model_source(str(run))
    full, small = source.load("cpu", torch.float32), source.load("cpu", torch.float32)
    quantize_weights(small, "int8")
    assert weight_bytes(small.layers) < 0.3 * weight_bytes(full.layers)
    assert weight_bytes(small.embed_tokens) == weight_bytes(full.embed_tokens)
    pair = source.tokenizer.encode(ASK), source.tokenizer.encode(ANSWER)
    (one,), (other,) = likelihoods(full, [pair]), likelihoods(small, [pair])
    assert one.logprob != other.logprob and abs(one.logprob - other.logprob) < 0.1 and other.is_greedy


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--checkpoint", "missing"], "--checkpoint = 'missing': no such folder"),
        (["--prompt", "x", "--max_new_tokens", 0], "--max_new_tokens = 0: must be from 1 to 16777216"),
        (["--prompt", "x", "--max_new_tokens", 40000], "lower --max_new_tokens to 32767 or less"),
        (["--prompt", "x" * 40000], "are more than the model reads, 32768; shorten it"),
        (
            ["--prompt", "x", "--temperature", -1],
            "must be 0 (the likeliest token) or from 0.001 to 100",
        ),
        (["--prompt", "x", "--temperature", "nan"], "--temperature = nan: must be 0 (the"),
        (["--prompt", "x", "--top_p", 1.5], "--top_p = 1.5: must be from 1e-06 to 1"),
        (["--prompt", "x", "--top_k", -2], "--top_k = -2: must be 0 (all) or from 1 to"),
        (["--prompt", "x", "--num_samples", 0], "--num_samples = 0: must be from 1 to 65536"),
        (["--prompt", "x", "--output", "out"], "--output: is for --prompts_file"),
        (["--prompt", "x", "--prompts_file", "y"], "not allowed with argument --prompt"),
        (["--prompt", "x", "--quantize", "int4"], "--quantize int4: its kernels need CUDA"),
        (["--prompt", "x", "--quantize", "int2"], "invalid choice: 'int2'"),
        (["--prompts_file", "missing.jsonl"], "--prompts_file = 'missing.jsonl': no such file"),
        (["--num_samples", 2], "--num_samples = 2: a chat has one answer"),
    ],
)
def test_wrong_flags_are_usage_errors(
    run: Path, capsys: pytest.CaptureFixture[str], flags: list[object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    checkpoint = [] if "--checkpoint" in flags else ["--checkpoint", run]
    assert tool_here(main, *checkpoint, *flags) == 2
    printed = capsys.readouterr()
    assert message in printed.err and "Traceback" not in printed.err and not printed.out


@pytest.mark.parametrize("flags", [["--prompt", "W"], ["--prompt", "W", "--num_samples", 2], []])
def test_a_broken_model_says_so(
    run: Path, capsys: pytest.CaptureFixture[str], flags: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One text, several, and a chat: no token is made up, the code is 1."""
    load = ModelSource.load

    def broken(self: ModelSource, *arguments: Any) -> Any:
        model = load(self, *arguments)
        model.norm.weight.data[0] = float("nan")
        return model

    monkeypatch.setattr(ModelSource, "load", broken)
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    assert tool_here(main, "--checkpoint", run, "--max_new_tokens", 4, *flags) == 1
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1].startswith("failed: logits are not finite: prompt 1, token 1 of its completion")
    assert "Traceback" not in printed.err and not printed.out.strip()


def test_text_parts_are_joined(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
    rows = [{"messages": [{"role": "user", "content": content}]} for content in (parts, "Hi", [{"type": "image"}])]
    assert read_prompts(write_rows(tmp_path / "two.jsonl", rows[:2])) == [rows[1]["messages"]] * 2
    with pytest.raises(ConfigError, match=r"three.jsonl, line 3: a message has a part 'image'; want parts of text"):
        read_prompts(write_rows(tmp_path / "three.jsonl", rows))


@pytest.mark.parametrize("row", [{}, {"prompt": ""}, {"prompt": 3}, {"messages": []}, {"messages": [{"role": "user"}]}])
def test_rows_without_a_prompt_are_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], row: dict
) -> None:
    file = write_rows(tmp_path / "prompts.jsonl", [{"prompt": "fine"}, row])
    assert tool_here(main, "--checkpoint", run, "--prompts_file", file) == 2
    assert "prompts.jsonl, line 2: no prompt; want" in capsys.readouterr().err
