"""GSM8K: grade-school word problems whose answer is a number (Cobbe et al. 2021, arXiv 2110.14168)."""

from collections.abc import Mapping
from typing import Any

from titan_pt.config.schema.grpo import GrpoTask
from titan_pt.data.builtin.formatters import without_calculator
from titan_pt.data.builtin.questions import QUESTION_ANSWER
from titan_pt.tasks.grading import gold_number, grade_gsm8k
from titan_pt.tasks.numbers import number_task
from titan_pt.tasks.problems import Entry, HubSet, read_problems, text_field
from titan_pt.tasks.self_check import proved
from titan_pt.tasks.task import Problem, Task, refuse_unused, worked_example

_HUB = HubSet("openai/gsm8k", "main", train="train", evaluation="test")


def build(row: GrpoTask, _seed: int) -> Task:
    """The GSM8K task. Local files have the fields `question` and `answer`: a number, or a text ending in "#### 18"."""
    refuse_unused(row, "path", "eval_path", "holdout_fraction")
    train, evaluation = read_problems(row, _HUB, _parse)
    return number_task(row.name, train, evaluation)


def example(row: Mapping[str, Any]) -> tuple[str, str]:
    """(prompt, worked answer) of a row of GSM8K, without the marks of a calculator.

    Raises:
        ValueError: the row lacks a field, its answer is no number, or grading takes its worked answer for wrong.
    """
    entry = _parse(row, "row")
    solution = _proved(without_calculator(entry.solution), entry.gold)
    return worked_example(QUESTION_ANSWER, Problem("gsm8k", entry.id, entry.question, entry.gold, solution))


def _parse(row: Mapping[str, Any], entry_id: str) -> Entry:
    question, answer = text_field(row, "question"), text_field(row, "answer")
    try:
        gold = gold_number(answer)
    except ValueError as error:
        raise ValueError(f"'answer': {error}") from None
    solution = answer if "####" in answer else f"#### {answer}"
    return Entry(entry_id, question, gold, solution=_proved(solution, gold))


def _proved(solution: str, gold: str) -> str:
    try:
        return proved(solution, gold, grade_gsm8k)
    except ValueError as error:
        raise ValueError(f"'answer': {error}; want one '#### ' and a number, as the last line") from None
