"""The adapter for lm-evaluation-harness, offline, on tasks and data made here."""

import json
import math
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch
from hf_helpers import write_model
from task_helpers import write_rows
from tool_helpers import tool_here

from titan_pt.hf.chat import chat_tokens
from titan_pt.hf.model_source import open_model_source
from titan_pt.tools import harness
from titan_pt.tools.harness import main

ROWS = [
    {"q": f"What is {i} + {i}?", "options": [f"{2 * i + d}" for d in range(4)], "text": "abc " * i} for i in range(1, 7)
]
GENERATION = 'generation_kwargs: {until: ["7"], max_gen_toks: 9}'
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {data}}}
test_split: train
output_type: {kind}
doc_to_text: {text}
doc_to_target: {target}
metric_list: [{{metric: {metric}, aggregation: {aggregation}, higher_is_better: true}}]
{more}
"""


def test_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool_here(main, "--checkpoint", "x", "--tasks", "y", "--include_path", tmp_path / "missing") == 2
    assert "missing': no such folder" in capsys.readouterr().err
    assert tool_here(main, "--checkpoint", "x", "--tasks", "y", "--limit", 0) == 2
    assert "--limit = 0: must be at least 1" in capsys.readouterr().err
    assert tool_here(main, "--checkpoint", "x", "--tasks", "y", "--num_fewshot", -1) == 2
    assert "--num_fewshot = -1: must be 0 or more" in capsys.readouterr().err


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    monkeypatch.setattr(harness, "version", absent)
    assert tool_here(main, "--checkpoint", "x", "--tasks", "y") == 2
    assert "pip install 'titan-pt[eval]'" in capsys.readouterr().err
    monkeypatch.setattr(harness, "version", lambda name: "0.4.9")
    assert tool_here(main, "--checkpoint", "x", "--tasks", "y") == 2
    message = capsys.readouterr().err
    assert "lm-eval 0.4.9 is installed and lacks" in message and "pip install 'lm-eval>=0.4.10,<0.5'" in message


def absent(name: str) -> str:
    raise PackageNotFoundError(name)


def test_harness_tasks_run_on_our_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data, tasks, folder = write_rows(tmp_path / "data.jsonl", ROWS), tmp_path / "tasks", tmp_path / "model"
    tasks.mkdir()
    ask = '"Question: {{q}}\\nAnswer:"'
    kinds = {
        "choose": ("multiple_choice", ask, "0", "acc", "mean", 'doc_to_choice: "{{options}}"'),
        "write": ("generate_until", ask, "q", "exact_match", "mean", GENERATION),
        "read": ("loglikelihood_rolling", '""', "text", "bits_per_byte", "bits_per_byte", ""),
    }
    names = ("kind", "text", "target", "metric", "aggregation", "more")
    for name, values in kinds.items():
        fields = dict(zip(names, values, strict=True))
        (tasks / f"{name}.yaml").write_text(TASK.format(name=f"own_{name}", data=data, **fields))
    write_model(folder, qwen=True, tied=True, max_position_embeddings=48)
    flags = ["--checkpoint", folder, "--include_path", tasks]
    assert tool_here(main, *flags, "--tasks", ",".join(f"own_{name}" for name in kinds), "--json") == 0
    out = capsys.readouterr().out
    found = json.loads(out[out.index("{") :])

    source = open_model_source(str(folder))
    model, encode = source.load("cpu", torch.float32), source.tokenizer.encode
    right = 0
    for row in ROWS:
        ids = encode(f"Question: {row['q']}\nAnswer:")
        scores = [_logprob(model, ids, encode(f" {option}")) for option in row["options"]]
        right += scores.index(max(scores)) == 0
    assert found["own_choose"]["acc"] == pytest.approx(right / len(ROWS))
    assert found["own_write"]["exact_match"] == 0.0
    begin = source.tokenizer.special_ids["<|im_start|>"]  # as the harness: not the end of a document
    nats = [_rolling(model, [begin, *encode(row["text"])]) for row in ROWS]
    num_bytes = sum(len(row["text"]) for row in ROWS)
    assert found["own_read"]["bits_per_byte"] == pytest.approx(sum(nats) / math.log(2) / num_bytes, rel=1e-4)
    assert tool_here(main, *flags, "--tasks", "own_choose", "--apply_chat_template", "--json") == 0
    out = capsys.readouterr().out
    asked = json.loads(out[out.index("{") :])["own_choose"]["acc"]
    right = 0
    for row in ROWS:
        ids = chat_tokens(source.tokenizer, [{"role": "user", "content": f"Question: {row['q']}\nAnswer:"}])
        assert ids[0] == source.tokenizer.special_ids["<|im_start|>"]
        scores = [_logprob(model, ids, encode(option)) for option in row["options"]]
        right += scores.index(max(scores)) == 0
    assert asked == pytest.approx(right / len(ROWS))
    few = ["--num_fewshot", len(ROWS) + 5]
    assert tool_here(main, *flags, "--tasks", "own_read,own_write", *few) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "--tasks: 'own_read': lm-evaluation-harness failed: ValueError: " in message and "lower it" in message
    assert tool_here(main, *flags, "--tasks", "own_chose") == 2
    assert "does not know own_chose" in capsys.readouterr().err


def _logprob(model: torch.nn.Module, context: list[int], answer: list[int]) -> float:
    row = [*context, *answer][-49:]
    logprobs = torch.log_softmax(model(torch.tensor([row[:-1]]))[0], dim=-1)
    return sum(float(logprobs[len(row) - 1 - len(answer) + i, token]) for i, token in enumerate(answer))


def _rolling(model: torch.nn.Module, ids: list[int]) -> float:
    """Texts that fit the model's 48 tokens."""
    return -_logprob(model, ids[:1], ids[1:])
