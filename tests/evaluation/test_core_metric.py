"""CORE on small files of DCLM's layout, against an implementation of its own on the model of transformers."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import read_rows, train_here, write_toml
from hf_helpers import write_model
from metric_keys import undocumented
from task_helpers import write_rows
from tool_helpers import tool_here
from transformers import AutoModelForCausalLM, AutoTokenizer

from titan_pt.evaluation.core_metric import CORE_TASKS, _result
from titan_pt.tools.evaluate import main

WORDS = ("red", "green", "blue", "small", "large", "old", "dog", "cat", "house", "river", "tree", "3", "17", "é")


def text(rng: random.Random, most: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, most)))


def choices(count: int, seed: int) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    rows = [{"query": text(rng, 6), "choices": [text(rng, 3) for _ in range(4)], "gold": i % 4} for i in range(count)]
    rows[0]["choices"] = ["cat", "cat tree", 17, 3]  # one begins with the other; numbers
    rows[1]["query"] = text(rng, 6) + "x" * 300  # longer than the model reads
    return rows


def schemas(count: int, seed: int) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    contexts = [[text(rng, 5), text(rng, 5)] for _ in range(count)]
    return [{"context_options": two, "continuation": text(rng, 3), "gold": i % 2} for i, two in enumerate(contexts)]


def passages(count: int, seed: int) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [{"context": f" {text(rng, 6)} ", "continuation": text(rng, 1), "category": "x"} for _ in range(count)]


FILES = {
    "world_knowledge/arc_easy": choices(23, 1),
    "commonsense_reasoning/copa": choices(9, 2),
    "language_understanding/winogrande": schemas(14, 3),
    "language_understanding/hellaswag": choices(12, 4),
    "world_knowledge/jeopardy_all": passages(12, 5),
}


def write_files(folder: Path) -> Path:
    for name, rows in FILES.items():
        write_rows(folder / f"{name}.jsonl", rows)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("random")
    write_model(path, qwen=False, tied=False)
    return path


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert tool_here(main, *arguments, "--json") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)["tasks"]["core"]
    return found


def by_itself(folder: Path, kind: str, rows: list[dict[str, Any]], examples: int, between: str, limit: int) -> float:
    """The accuracy of a task: nothing of titan_pt, one option at a time, all logits at once."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    rows = list(rows)
    random.Random(1337).shuffle(rows)

    def encode(prompt: str) -> list[int]:
        return [tokenizer.bos_token_id, *tokenizer.encode(prompt, add_special_tokens=False)]

    def losses(ids: list[int]) -> torch.Tensor:  # of every token but the first
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, :-1]
        return torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")

    def options(row: dict[str, Any]) -> list[str]:
        if kind == "choice":
            return [f"{row['query']}{between}{choice}" for choice in row["choices"]]
        return [f"{context}{between}{row['continuation']}" for context in row["context_options"]]

    right = 0
    for index, row in enumerate(rows[:limit]):
        others = [i for i in range(len(rows)) if i != index]
        shown = [rows[i] for i in random.Random(1234 + index).sample(others, examples)]
        if kind == "passage":
            before = "".join(f"{one['context'].strip()}{between}{one['continuation']}\n\n" for one in shown)
            start = encode((before + row["context"].strip() + between).strip())
            whole = encode(before + row["context"].strip() + between + row["continuation"])[-256:]
            added = len(encode(before + row["context"].strip() + between + row["continuation"])) - len(start)
            with torch.no_grad():
                likeliest = model(torch.tensor([whole])).logits[0].argmax(-1).tolist()
            right += likeliest[-added - 1 : -1] == whole[-added:]
            continue
        before = "".join(options(one)[one["gold"]] + "\n\n" for one in shown)
        encoded = [encode(before + option) for option in options(row)]
        if kind == "choice":
            same = next(n for n in range(999) if n == min(map(len, encoded)) or len({ids[n] for ids in encoded}) > 1)
            same = min(same, min(map(len, encoded)) - 1)  # a token of each
            scored = [len(ids) - same for ids in encoded]
        else:
            scored = [next(n for n in range(999) if len({ids[-n - 1] for ids in encoded}) > 1)] * len(encoded)
        means = [float(losses(ids[-256:])[-count:].mean()) for ids, count in zip(encoded, scored, strict=True)]
        right += means.index(min(means)) == row["gold"]
    return right / len(rows[:limit])


@pytest.mark.parametrize("limit", [None, 7])
def test_each_kind_equals_an_implementation_of_its_own(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], limit: int | None
) -> None:
    data = write_files(tmp_path / "eval_data").parent
    flags = ["--limit", limit] if limit else []
    found = evaluated(capsys, "--checkpoint", folder, "--tasks", "core", "--data", f"core={data}", *flags)
    most = limit or 999
    answer = "\nAnswer: "
    expected = {  # accuracy, share of guessing
        "hellaswag_zeroshot": (
            by_itself(folder, "choice", FILES["language_understanding/hellaswag"], 0, " ", most),
            25,
        ),
        "jeopardy": (by_itself(folder, "passage", FILES["world_knowledge/jeopardy_all"], 10, answer, most), 0),
        "arc_easy": (by_itself(folder, "choice", FILES["world_knowledge/arc_easy"], 10, answer, most), 25),
        "copa": (by_itself(folder, "choice", FILES["commonsense_reasoning/copa"], 0, " ", most), 50),
        "hellaswag": (by_itself(folder, "choice", FILES["language_understanding/hellaswag"], 10, " ", most), 25),
        "winogrande": (by_itself(folder, "schema", FILES["language_understanding/winogrande"], 0, " ", most), 50),
    }
    assert {name: task["accuracy"] for name, task in found["tasks"].items()} == pytest.approx(
        {name: accuracy for name, (accuracy, _) in expected.items()}, abs=1e-6
    )
    centred = [(accuracy - guess / 100) / (1 - guess / 100) for accuracy, guess in expected.values()]
    assert found["core_metric"] == pytest.approx(sum(centred) / len(centred), abs=1e-6)
    assert (found["num_tasks"], len(found["missing"])) == (6, 16) and "squad" in found["missing"]
    assert found["interval"][0] < found["core_metric"] < found["interval"][1]


def test_the_table_has_the_22_tasks() -> None:
    assert len({task.name for task in CORE_TASKS}) == len(CORE_TASKS) == 22
    shots = {task.name: task.examples for task in CORE_TASKS}
    assert [name for name, count in shots.items() if count == 0] == [
        *("hellaswag_zeroshot", "copa", "openbook_qa", "lambada_openai", "winograd", "winogrande", "coqa")
    ]
    assert [name for name, count in shots.items() if count not in (0, 10)] == ["agi_eval_lsat_ar"]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_interval_has_a_width_where_all_is_wrong_or_right(share: float) -> None:
    result = _result(dict.fromkeys(CORE_TASKS, 50), dict.fromkeys(CORE_TASKS, share))
    low, high = result.intervals["core_metric"]
    assert low < result.values["core_metric"] <= high <= 1.0 and 0.005 < high - low < 0.05


def test_core_while_training(tmp_path: Path) -> None:
    write_files(tmp_path / "data")
    task = {"name": "core", "path": str(tmp_path / "data"), "limit": 2}
    model = {"max_seq_len": 256}
    validation = {"enable": True, "freq": 6, "steps": 1, "tasks": [task, {"name": "arithmetic", "limit": 2}]}
    validation["tasks"][1]["max_new_tokens"] = 4
    assert train_here(write_toml(tmp_path, validation=validation, model=model)) == 0
    row = read_rows(tmp_path / "run")[-1]
    assert row["eval/core/num_tasks"] == 6 and row["eval/core/problems"] == 12
    assert {"eval/core/core_metric", "eval/core/winogrande/accuracy", "eval/arithmetic/accuracy"} < row.keys()
    assert not undocumented([row], "pretrain")


BAD = {"query": "q", "choices": ["a", "b"], "gold": 2}


@pytest.mark.parametrize(
    ("rows", "flags", "message"),
    [
        (None, [], "--data core = '{data}': no such folder"),
        ([], [], "holds none of the 22 tasks; want files such as"),
        ([BAD], [], "copa.jsonl, line 1: 'gold' is 2; want the number of the right one, 0 to 1; repair or remove"),
        ([{**BAD, "choices": ["a"]}], [], "'choices': want two texts or more"),
        ([{**BAD, "gold": 0, "choices": ["", " "]}], [], "'choices': want two texts or more, none of them empty"),
        ([{"choices": ["a", "b"]}], [], "'query' is None; want text"),
        ([{**BAD, "gold": 0}], ["--num_fewshot", 5], "--tasks ('core'): num_fewshot: no effect on core"),
        ([BAD], ["--on_bad_row", "skip"], "copa.jsonl: 0 rows; copa shows 0 others before each question, and needs 1"),
        ([{**BAD, "gold": 0}], ["--samples", 4], "--samples: has no effect on core"),
    ],
)
def test_wrong_usage(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    rows: list[dict[str, Any]] | None,
    flags: list[object],
    message: str,
) -> None:
    data = tmp_path / "data"
    if rows is not None:
        data.mkdir()
    if rows:
        write_rows(data / "commonsense_reasoning/copa.jsonl", rows)
    assert tool_here(main, "--checkpoint", folder, "--tasks", "core", "--data", f"core={data}", *flags) == 2
    assert message.format(data=data) in capsys.readouterr().err


def test_core_needs_its_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool_here(main, "--checkpoint", folder, "--tasks", "core") == 2
    assert "--data core: missing; want the folder of DCLM's eval_data" in capsys.readouterr().err
