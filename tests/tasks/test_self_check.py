"""Every row's worked answer is right by every rule or the row is refused by place; and no grading takes nonsense."""

import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT
from hypothesis import given
from hypothesis import strategies as st
from task_helpers import CASES, SUMS, asked, open_row, problem_of, write_rows

from titan_pt.config.schema.grpo import GrpoTask
from titan_pt.tasks import gsm8k, medqa, task
from titan_pt.tasks.grading import RULES, grade_gsm8k, grade_medqa
from titan_pt.tasks.problems import Entry, normalised, plain_problems
from titan_pt.tasks.task import Problem, Task, register_task
from titan_pt.trainers.sft.records import record_tokens

KNOWN = {"gsm8k": (SUMS, gsm8k, grade_gsm8k), "medqa": (CASES, medqa, grade_medqa)}


def cases(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (ROOT / f"tests/cases/rows/{name}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", KNOWN)
def test_bad_rows_are_an_error_by_line_or_left_out(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    good, module, _ = KNOWN[name]
    rows, bad = good[:10], 0
    for case in cases(name):
        path = write_rows(tmp_path / "x.jsonl", [*good[:10], case["row"]])
        sft = record_of(module.example, case["row"])
        if case["defect"] is None:
            assert len(open_row(name, path=path, holdout_fraction=0.3).train) > 0 and "bad" not in sft
        else:
            message = problem_of(name, path=path)
            assert message.startswith(f"{path}, line 11: ") and 'set on_bad_row = "skip"' in message, case["defect"]
            assert message.startswith(f"{path}, line 11: {sft['bad']}"), "fine-tuning refuses it for the same reason"
            bad += 1
        rows = [*rows, case["row"]]
    with caplog.at_level(logging.WARNING, "titan_pt"):
        opened = open_row(name, path=write_rows(tmp_path / "all.jsonl", rows), on_bad_row="skip", holdout_fraction=0.3)
    assert len(opened.train) + len(opened.evaluation) == len(rows) - bad
    assert f"{bad} of {len(rows)} rows are left out, the first: {tmp_path}/all.jsonl, line 11: " in caplog.text


def record_of(example: Callable[[Any], tuple[str, str]], row: Any) -> dict[str, Any]:
    """The record of a row as `register_records` makes it."""
    try:
        return dict(zip(("prompt", "completion"), example(row), strict=True))
    except ValueError as error:
        return {"bad": str(error)}


ODD = st.sampled_from(
    ["####", "#### 6", "#", " ", "\n", "−", "-", "$", ".", ",", "6", "Answer: B", "<<1>>", "\u00a0", "٣"]
)
VALUES = st.one_of(st.none(), st.booleans(), st.integers(-3, 9), st.text(max_size=6), st.just([]), st.just({}))


@st.composite
def defective(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A row of a task with one defect: a field gone, of another kind, another row's, or with odd text in it."""
    name = draw(st.sampled_from(sorted(KNOWN)))
    rows = KNOWN[name][0]
    row = json.loads(json.dumps(rows[draw(st.integers(0, 30))]))
    inner = name == "medqa" and draw(st.booleans())
    table = row["options"] if inner else row
    field = draw(st.sampled_from(sorted(table)))
    kind = draw(st.sampled_from(["gone", "value", "other", "odd"]))
    if kind == "gone":
        del table[field]
    elif kind == "value":
        table[field] = draw(VALUES)
    elif kind == "other":
        table[field] = draw(st.sampled_from(list((rows[31]["options"] if inner else rows[31]).values())))
    elif isinstance(table[field], str):
        at = draw(st.integers(0, len(table[field])))
        table[field] = table[field][:at] + draw(ODD) + table[field][at:]
    return name, row


@given(defective())
def test_a_row_with_a_defect_is_refused_or_graded_right(case: tuple[str, dict[str, Any]]) -> None:
    name, row = case
    _, module, grade = KNOWN[name]
    try:
        entry = module._parse(row, "id")
        _, answer = module.example(row)
    except ValueError:
        return
    assert all(grade(answer, entry.gold, rule) for rule in RULES)
    if name == "medqa":
        right = entry.options["ABCDE".index(entry.gold)]
        assert [normalised(text) for text in entry.options].count(normalised(right)) == 1
        assert row.get("answer") in (None, entry.gold) or medqa._same(row["answer"]) == medqa._same(right)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Registers the task "mine" of twenty sums, graded by a function, for one test."""
    monkeypatch.setattr(task._TASKS, "_registered", dict(task._TASKS._registered))

    def register(grade: Callable[[str, Problem, str], bool], solution: str = "", **fields: Any) -> None:
        entries = [Entry(f"mine/{i}", f"How much is {i} and {i}?", str(2 * i), solution=solution) for i in range(5, 45)]

        def build(row: GrpoTask, seed: int) -> Task:
            train, evaluation = plain_problems(entries[:20], "mine"), plain_problems(entries[20:], "mine")
            return Task(name=row.name, train=train, evaluation=evaluation, grade=grade, **fields)

        register_task("mine", build)

    return register


def numbers(text: str) -> float:
    return float(text.replace("How much is", "").split(" and ")[0])


@pytest.mark.parametrize(
    ("grade", "message"),
    [
        (lambda text, problem, rule: True, "takes '' for right 20 of 20 times, as of mine/5: ''"),
        (lambda text, problem, rule: not abs(float(text) - int(problem.gold)) > 0, "takes 'nan' for right 20 of 20"),
        (lambda text, problem, rule: "not" in text, "takes 'I do not know' for right 20 of 20 times"),
        (lambda text, problem, rule: len(text) == 1, "takes '?' for right 20 of 20"),
        (lambda text, problem, rule: text.isdigit(), "takes the answer to another problem for right 20 of 20 times"),
        (lambda text, problem, rule: 2 * numbers(text) == int(problem.gold), "takes the question itself for right 20"),
        (lambda text, problem, rule: text.strip("-") == problem.gold, "takes the negated answer for right 20 of 20"),
        (lambda text, problem, rule: text in ("0", problem.gold), "takes 0 for right 20 of 20 times"),
    ],
)
def test_a_grading_that_takes_nonsense_is_refused(registered: Callable[..., None], grade: Any, message: str) -> None:
    registered(grade)
    assert message in problem_of("mine") and "rewards would teach it" in problem_of("mine")


def test_gradings_that_are_right(registered: Callable[..., None]) -> None:
    registered(lambda text, problem, rule: text.strip() == problem.gold)
    assert len(open_row("mine").train) == 20


def test_an_open_ended_task_may_take_any_reply(registered: Callable[..., None]) -> None:
    registered(lambda text, problem, rule: len(text) < 100, open_ended=True)
    assert len(open_row("mine").train) == 20


def test_worked_answers_of_a_registered_task_are_graded(
    registered: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    registered(lambda text, problem, rule: problem.gold == "20" and text == "It is 20.", solution="It is 20.")
    message = problem_of("mine")
    assert message.startswith(
        "mine/5: its own worked answer 'It is 20.' is wrong by the rule official, strict, lenient"
    )
    assert '(19 such problems); on_bad_row = "skip" leaves them out' in message
    assert "there are no problems to evaluate on" in problem_of("mine", on_bad_row="skip")


def test_a_grading_that_raises_or_hangs_does_not_end_the_start(
    registered: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("titan_pt.tasks.self_check._ALL_SECONDS", 0.05)

    def grade(text: str, problem: Problem, rule: str) -> bool:
        if text == "?":
            time.sleep(5)
        if text.isdigit():
            return text == problem.gold
        raise SystemExit

    registered(grade)
    assert len(open_row("mine").train) == 20


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("the judge\nis down"), "each of 340 calls raised, the first for the reply '10' to mine/5: "
         "RuntimeError: the judge is down; repair it"),
        (GeneratorExit(), "each of 340 calls raised, the first for the reply '10' to mine/5: GeneratorExit; repair"),
        (None, "its grading gives no verdict: it took longer than 0.05 s; repair it"),
    ],
)  # fmt: skip
def test_a_grading_without_any_verdict_is_refused(
    registered: Callable[..., None], monkeypatch: pytest.MonkeyPatch, error: BaseException | None, message: str
) -> None:
    def grade(text: str, problem: Problem, rule: str) -> bool:
        if error:
            raise error
        time.sleep(5)
        return True

    if not error:
        monkeypatch.setattr("titan_pt.tasks.self_check._ALL_SECONDS", 0.05)
    registered(grade)
    assert message in problem_of("mine")


def test_problems_that_are_left_out_keep_the_others_and_change_the_fingerprint(registered: Callable[..., None]) -> None:
    registered(lambda text, problem, rule: int(problem.gold) % 4 == 0 and text == "yes", solution="yes")
    opened = open_row("mine", on_bad_row="skip")
    assert [int(problem.gold) % 4 for problem in asked(opened.train)] == [0] * 10
    assert opened.train.fingerprint != opened.evaluation.fingerprint


def test_an_endless_set_is_opened_at_once(registered: Callable[..., None]) -> None:
    class Endless:
        fingerprint = "endless"

        def __len__(self) -> int:
            return 10**12

        def get(self, index: int, visit: int) -> Problem:
            return Problem("mine", f"mine/{index}", f"What is {index}?", f"it {index}", solution="")

    def build(row: GrpoTask, seed: int) -> Task:
        return Task(
            name=row.name, train=Endless(), evaluation=Endless(), grade=lambda text, problem, rule: text == problem.gold
        )

    register_task("endless", build)
    start = time.process_time()
    assert len(open_row("endless").train) == 10**12 and time.process_time() - start < 5


def test_rows_of_fine_tuning_are_those_of_the_tasks() -> None:
    from titan_pt.components.tokenizer import ByteTokenizer

    record = record_of(gsm8k.example, cases("gsm8k")[0]["row"])
    with pytest.raises(ValueError, match="its own worked answer"):
        record_tokens(record, ByteTokenizer())
