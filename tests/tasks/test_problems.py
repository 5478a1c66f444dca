"""Problems from every kind of file and from the hub, what is wrong with a row, and splits that never mix."""

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from task_helpers import CASES, SUMS, asked, open_row, problem_of, questions, write_rows

from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.grpo import EvaluationTask
from titan_pt.tasks.problems import Entry, hold_out, is_held_out, normalised
from titan_pt.tasks.task import Problem, open_task


def test_problems_of_every_kind_of_file(tmp_path: Path) -> None:
    rows = [{**row, "other": i} for i, row in enumerate(SUMS)]
    write_rows(tmp_path / "a.jsonl", rows)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    (tmp_path / "c.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet", row_group_size=7)
    seen = set()
    for file, second in (("a.jsonl", "2"), ("b.jsonl.gz", "2"), ("c.json", "item 1"), ("d.parquet", "row 1")):
        opened = open_row("gsm8k", path=str(tmp_path / file), eval_path=write_rows(tmp_path / "e.jsonl", SUMS[:1]))
        assert len(opened.train) == 39
        problem = opened.evaluation.get(0, 0)
        solution = SUMS[0]["answer"]
        assert problem == Problem("gsm8k", "gsm8k/e.jsonl:1", "How much is 0 and 0?", "0", solution)
        solution = SUMS[1]["answer"]
        assert opened.train.get(0, 0) == Problem(
            "gsm8k", f"gsm8k/{file}:{second}", "How much is 1 and 1?", "2", solution
        )
        assert opened.train.get(0, 5) == opened.train.get(0, 0)
        assert opened.prompt(problem) == "Question: How much is 0 and 0?\nAnswer:"
        seen.add(opened.train.fingerprint)
    assert len(seen) == 1, "the same problems, whatever file they stand in"


def test_options_from_every_kind_of_file(tmp_path: Path) -> None:
    """Parquet has a column of each letter: a question without E holds a null there."""
    five = {**CASES[1], "options": {**CASES[1]["options"], "E": "none"}}
    pq.write_table(pa.Table.from_pylist([*CASES[2:], five]), tmp_path / "mixed.parquet")
    pq.write_table(pa.Table.from_pylist([*CASES[2:], {**five, "options": CASES[1]["options"]}]), tmp_path / "x.parquet")
    open_row("medqa", path=str(tmp_path / "x.parquet"))
    message = problem_of("medqa", path=str(tmp_path / "mixed.parquet"))
    assert message.startswith("medqa/mixed.parquet:row 0 has 4 options and medqa/mixed.parquet:row 38 has 5; ")


def test_ids_differ_between_files(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_rows(tmp_path / folder / "x.jsonl", SUMS[:20] if folder == "a" else SUMS[20:])
    opened = open_row("gsm8k", path=str(tmp_path / "*" / "x.jsonl"), holdout_fraction=0.3)
    ids = [problem.id for part in (opened.train, opened.evaluation) for problem in asked(part)]
    assert sorted(ids) == sorted(f"gsm8k/{folder}/x.jsonl:{line}" for folder in "ab" for line in range(1, 21))


def test_ids_differ_between_tasks(tmp_path: Path) -> None:
    opened = open_row("gsm8k:mine", path=write_rows(tmp_path / "x.jsonl", SUMS))
    problem = opened.train.get(0, 0)
    assert (opened.name, problem.task) == ("gsm8k:mine", "gsm8k:mine") and problem.id.startswith("gsm8k:mine/x.jsonl:")


GOOD_SUM, GOOD_CASE = SUMS[0], CASES[0]
HF_CASE = {"id": "t-1", "sent1": "Which?", "sent2": "", **{f"ending{i}": f"d{i}" for i in range(4)}, "label": 2}


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("gsm8k", {"answer": "#### 1"}, "no 'question'; it has answer"),
        ("gsm8k", {**GOOD_SUM, "question": " \n"}, r"'question' is ' \n'; want text"),
        ("gsm8k", {**GOOD_SUM, "question": None}, "'question' is None; want text"),
        ("gsm8k", {**GOOD_SUM, "question": "\ud800"}, "'question' is not UTF-8: surrogates not allowed"),
        ("gsm8k", {"question": "x"}, "no 'answer'; it has question"),
        ("gsm8k", {**GOOD_SUM, "answer": 18}, "'answer' is 18; want text"),
        ("gsm8k", {**GOOD_SUM, "answer": "It is 18."}, "'answer': gold = 'It is 18.': want a number"),
        ("gsm8k", {**GOOD_SUM, "answer": "#### eighteen"}, "'answer': gold = '#### eighteen': want a number"),
        ("gsm8k", {**GOOD_SUM, "answer": "#### 18%"}, "'answer': gold = '#### 18%': want a number"),
        ("gsm8k", ["question"], "is list, not an object"),
        ("medqa", {**GOOD_CASE, "answer_idx": "E"}, "'answer_idx' is 'E'; want one of A, B, C, D"),
        ("medqa", {**GOOD_CASE, "answer_idx": "AB"}, "'answer_idx' is 'AB'; want one of A, B, C, D"),
        ("medqa", {**GOOD_CASE, "answer_idx": 1}, "'answer_idx' is 1; want one of A, B, C, D"),
        ("medqa", {"question": "x", "options": GOOD_CASE["options"]}, "no 'answer_idx'; it has options, question"),
        ("medqa", {**GOOD_CASE, "options": ["a", "b"]}, "'options' is [...]; want an object of texts under A, B"),
        ("medqa", {**GOOD_CASE, "options": {}}, "'options' has none; want A, B and so on"),
        ("medqa", {**GOOD_CASE, "options": {"A": "a", "C": "c"}}, "'options' has A, C; want A, B and so on"),
        ("medqa", {**GOOD_CASE, "options": {"a": "a", "b": "c"}}, "'options' has a, b; want A, B and so on"),
        ("medqa", {**GOOD_CASE, "options": {**GOOD_CASE["options"], "B": ""}}, "'B' is ''; want text"),
        ("medqa", {**HF_CASE, "label": 4}, "'label' is 4; want the number of an option, 0 to 3"),
        ("medqa", {**HF_CASE, "label": -1}, "'label' is -1; want the number of an option"),
        ("medqa", {**HF_CASE, "label": True}, "'label' is true; want the number of an option"),
        ("medqa", {**HF_CASE, "sent1": ""}, "'sent1' is ''; want text"),
        ("medqa", {key: HF_CASE[key] for key in ("sent1", "ending0", "ending2")}, "the options are ending0, ending2"),
        ("medqa", {"sent1": "x"}, "no 'question'; it has sent1"),
    ],
)
def test_wrong_rows_are_named(tmp_path: Path, name: str, row: Any, message: str) -> None:
    good = GOOD_SUM if name == "gsm8k" else HF_CASE if "sent1" in row else GOOD_CASE
    path = write_rows(tmp_path / "x.jsonl", [good, row])
    assert problem_of(name, path=path).startswith(f"{path}, line 2: {message}")


@pytest.mark.parametrize(
    ("name", "first", "second", "same"),
    [
        ("gsm8k", {}, {"answer": "#### 6"}, False),
        ("gsm8k", {}, {"question": " how much is 39 AND 39?", "answer": "-78"}, False),
        ("gsm8k", {}, {"answer": "#### 78.0"}, True),
        ("medqa", {}, {"answer_idx": "A", "answer": "A"}, False),
        ("medqa", {"options": dict(zip("ABCD", "wxyz", strict=True)), "answer_idx": "A", "answer": None},
         {"options": dict(zip("ABCD", "ZYXW", strict=True)), "answer_idx": "D", "answer": None}, True),
        ("medqa", {}, {"options": dict(zip("ABCD", "wxyz", strict=True)), "answer": None}, True),
    ],
)  # fmt: skip
def test_a_question_has_one_answer(tmp_path: Path, name: str, first: Any, second: Any, same: bool) -> None:
    good = SUMS if name == "gsm8k" else CASES
    rows = [{**good[39], **change} for change in (first, second)]
    files = [write_rows(tmp_path / f"{i}.jsonl", [row, *good[: 9 * i]]) for i, row in enumerate(rows)]
    row = EvaluationTask(name=name, eval_path=str(tmp_path / "*.jsonl"))
    if same:
        assert len(open_task(row, 0).evaluation) == 11
        return
    with pytest.raises(ConfigError, match=f"{files[1]}, line 1: the question is that of {name}/0.jsonl:1, whose"):
        open_task(row, 0)
    skipping = row.model_copy(update={"on_bad_row": "skip"})
    assert len(open_task(skipping, 0).evaluation) == 10


def test_wrong_files_are_named(tmp_path: Path) -> None:
    good = write_rows(tmp_path / "x.jsonl", SUMS)
    empty = write_rows(tmp_path / "empty.jsonl", [])
    (tmp_path / "x.txt").write_text("text")
    assert "path = 'nothing*' matches no file; the working folder is" in problem_of("gsm8k", path="nothing*")
    assert "eval_path = 'nothing*' matches" in problem_of("gsm8k", path=good, eval_path="nothing*")
    assert "is a folder; name its files" in problem_of("gsm8k", path=str(tmp_path))
    assert problem_of("gsm8k", path=empty) == f"{empty}: holds no problems"
    assert problem_of("gsm8k", path=good, eval_path=empty) == f"{empty}: holds no problems"
    assert "a text file has no rows; known are .json," in problem_of("gsm8k", path=str(tmp_path / "x.txt"))
    (tmp_path / "broken.jsonl.gz").write_bytes(b"\x1f\x8b rubbish")
    assert "broken.jsonl.gz: cannot be read: " in problem_of("gsm8k", path=str(tmp_path / "broken.jsonl.gz"))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 rubbish")
    assert "broken.parquet: cannot be read: " in problem_of("gsm8k", path=str(tmp_path / "broken.parquet"))


# Splits


@given(st.lists(st.text(), max_size=60), st.floats(0.0, 1.0), st.randoms())
def test_no_question_is_trained_and_evaluated(texts: list[str], fraction: float, rng: Any) -> None:
    """A question is always on the same side, whatever the order, the blanks and the capitals."""
    shuffled = [text.upper() + " " if rng.random() < 0.5 else text for text in texts]
    rng.shuffle(shuffled)
    sides: dict[str, set[bool]] = {}
    for text in [*texts, *shuffled]:
        sides.setdefault(normalised(text), set()).add(is_held_out(text, fraction))
    assert all(len(side) == 1 for side in sides.values())
    entries = [Entry(str(i), text, "1") for i, text in enumerate(shuffled)]
    try:
        train, evaluation = hold_out(entries, fraction)
    except ConfigError:
        return
    assert not {normalised(entry.question) for entry in train} & {normalised(entry.question) for entry in evaluation}
    assert sorted([*train, *evaluation], key=lambda entry: int(entry.id)) == entries
    assert train == sorted(train, key=lambda entry: int(entry.id)), "in the order of the file"


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5])
def test_holdout_fraction_is_the_held_out_share(fraction: float) -> None:
    count = sum(is_held_out(f"question {i}", fraction) for i in range(20_000))
    assert abs(count - 20_000 * fraction) < 5 * (20_000 * fraction * (1 - fraction)) ** 0.5


def test_more_problems_change_no_held_out_one(tmp_path: Path) -> None:
    fewer = open_row("gsm8k", path=write_rows(tmp_path / "x.jsonl", SUMS[:25]), holdout_fraction=0.2)
    more = open_row("gsm8k", seed=9, path=write_rows(tmp_path / "y.jsonl", SUMS[::-1]), holdout_fraction=0.3)
    assert not questions(fewer.evaluation) & questions(more.train)


def test_a_question_in_both_files_is_not_trained_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spelt = [{**row, "question": f"  {row['question'].upper()}".replace(" ", "\n ")} for row in SUMS[10:14]]
    with caplog.at_level(logging.WARNING, "titan_pt"):
        opened = open_row(
            "gsm8k",
            path=write_rows(tmp_path / "train.jsonl", SUMS[:14]),
            eval_path=write_rows(tmp_path / "test.jsonl", [*spelt, *SUMS[20:]]),
        )
    assert [problem.id for problem in asked(opened.train)] == [f"gsm8k/train.jsonl:{i}" for i in range(1, 11)]
    assert len(opened.evaluation) == 24
    assert [record.message for record in caplog.records] == [
        "Task gsm8k: 4 of 14 training problems are also evaluated on; they are taken out of training"
    ]


def test_an_empty_split_is_an_error(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "x.jsonl", SUMS)
    assert problem_of("gsm8k", path=path, eval_path=path).startswith("every training problem is also in the set to")
    assert problem_of("gsm8k", path=path, holdout_fraction=0.0) == (
        "holdout_fraction = 0 leaves none of 40 problems to evaluate on; raise it"
    )
    assert problem_of("gsm8k", path=path, holdout_fraction=1.0) == (
        "holdout_fraction = 1 leaves none of 40 problems to train on; lower it"
    )


def test_an_unused_holdout_fraction_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, own = write_rows(tmp_path / "x.jsonl", SUMS), write_rows(tmp_path / "y.jsonl", SUMS[:4])
    with caplog.at_level(logging.WARNING, "titan_pt"):
        open_row("gsm8k", path=path, eval_path=own, holdout_fraction=0.2)
    assert "holdout_fraction has no effect" in caplog.records[0].message


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "train", "evaluation", "num_train", "num_evaluation"),
    [
        ("gsm8k", "gsm8k/train.jsonl", "gsm8k/test.jsonl", 7473, 1319),
        ("medqa", "medqa/dev.jsonl", "medqa/test.jsonl", 1272, 1273),
        ("medqa", "medqa/train_small.jsonl", "medqa/dev.jsonl", 100, 1272),
        ("medqa", "medqa/train_small_5options.jsonl", "medqa/test_5options.jsonl", 50, 1273),
    ],
)
def test_real_splits_share_no_question(
    realdata: Path, name: str, train: str, evaluation: str, num_train: int, num_evaluation: int
) -> None:
    opened = open_row(name, path=str(realdata / train), eval_path=str(realdata / evaluation))
    assert (len(opened.train), len(opened.evaluation)) == (num_train, num_evaluation), "nothing had to be taken out"
    assert not questions(opened.train) & questions(opened.evaluation)
    alone = open_row(name, path=str(realdata / train), holdout_fraction=0.2)
    assert len(alone.train) + len(alone.evaluation) == num_train
    assert not questions(alone.train) & questions(alone.evaluation)
    for problem in asked(opened.evaluation):
        answer = f"Answer: {problem.gold}" if name == "medqa" else f"#### {problem.gold}"
        assert all(opened.grade(f"so\n{answer}", problem, rule) for rule in ("official", "strict", "lenient"))


def test_fingerprints_change_with_the_problems(tmp_path: Path) -> None:
    def fingerprint(rows: Any, name: str = "gsm8k", file: str = "x.jsonl", **fields: Any) -> str:
        return open_row(name, path=write_rows(tmp_path / file, rows), **fields).train.fingerprint

    assert fingerprint(SUMS) == fingerprint(SUMS, file="y.jsonl")
    changes = [SUMS[::-1], SUMS[1:], [*SUMS[:-1], {**SUMS[-1], "answer": "79"}]]
    assert len({fingerprint(rows) for rows in (SUMS, *changes)}) == 4
    other = [{**row, "answer": None, "options": {**row["options"], "D": "another"}} for row in CASES]
    prints = [
        fingerprint(CASES, "medqa"),
        fingerprint(CASES, "medqa", seed=2),
        fingerprint(CASES, "medqa", shuffle_options=False),
        fingerprint(other, "medqa"),
    ]
    assert len(set(prints)) == 4


# The hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str | None, str], Any]:
    sets: dict[tuple[str, str | None, str], Any] = {}

    def load_dataset(path: str, name: str | None = None, split: str = "") -> datasets.Dataset:
        return datasets.Dataset.from_list(sets[path, name, split])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return sets


def test_gsm8k_is_read_from_the_hub(hub: dict[Any, Any], tmp_path: Path) -> None:
    hub["openai/gsm8k", "main", "train"] = SUMS[:30]
    hub["openai/gsm8k", "main", "test"] = SUMS[25:]
    opened = open_row("gsm8k")
    assert (len(opened.train), len(opened.evaluation)) == (25, 15), "also there, nothing is in both"
    assert opened.train.get(2, 0).id == "gsm8k/train:row 2"
    opened = open_row("gsm8k", eval_path=write_rows(tmp_path / "x.jsonl", SUMS[:5]))
    assert (len(opened.train), opened.evaluation.get(0, 0).id) == (25, "gsm8k/x.jsonl:1")
    hub["openai/gsm8k", "main", "test"] = [{"question": "x", "answer": "y"}]
    assert problem_of("gsm8k").startswith("openai/gsm8k (main), test, row 0: 'answer': gold = 'y': want a number")


def test_medqa_is_read_from_the_hub(hub: dict[Any, Any]) -> None:
    rows = [
        {
            "id": f"train-{i}",
            "sent1": row["question"],
            "sent2": "Choose." if i == 3 else "",
            **{f"ending{number}": text for number, text in enumerate(row["options"].values())},
            "label": i % 4,
        }
        for i, row in enumerate(CASES)
    ]
    hub["GBaker/MedQA-USMLE-4-options-hf", None, "train"] = rows[4:]
    hub["GBaker/MedQA-USMLE-4-options-hf", None, "validation"] = rows[:4]
    problem = open_row("medqa").evaluation.get(3, 0)
    assert problem.question.startswith("A patient of 3 years coughs. Which? Choose.\nA. drug 0 of 3\nB. ")
    assert problem.gold == "D"


def test_a_missing_network_names_local_files() -> None:
    """The tests are offline: the message is the real one."""
    for name in ("gsm8k", "medqa"):
        message = problem_of(name)
        assert "cannot be had from the hub: " in message and "\n" not in message
        assert message.endswith(
            'without network give local files, such as path = "train.jsonl" and eval_path = "test.jsonl"'
        )
