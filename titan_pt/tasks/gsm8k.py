"""GSM8K: grade-school word problems whose answer is a number (Cobbe et al. 2021, arXiv 2110.14168)."""

from collections.abc import Mapping
from typing import Any

from titan_pt.config.schema.grpo import GrpoTask
from titan_pt.data.builtin.formatters import without_calculator
from titan_pt.tasks.grading import find_number, gold_number, grade_gsm8k
from titan_pt.tasks.problems import Entry, HubSet, plain_problems, read_problems, text_field
from titan_pt.tasks.task import QUESTION_ANSWER, Problem, Task, refuse_unused, worked_example

_HUB = HubSet("openai/gsm8k", "main", train="train", evaluation="test")


def build(row: GrpoTask, _seed: int) -> Task:
    """The task. Local files have the fields `question` and `answer`: a number, or a text that ends in "#### 18"."""
    refuse_unused(row, "path", "eval_path", "holdout_fraction")
    train, evaluation = read_problems(row, _HUB, _parse)
    return Task(
        name=row.name,
        train=plain_problems(train, row.name),
        evaluation=plain_problems(evaluation, row.name),
        grade=grade_number,
        find_answer=find_number,
    )


def example(row: Mapping[str, Any]) -> tuple[str, str]:
    """(prompt, worked answer) of a row as the task asks it; a ValueError says what is wrong with the row.

    Without the marks of a calculator, which this model does not have.
    """
    entry = _parse(row, "row")
    solution = without_calculator(entry.solution)
    return worked_example(QUESTION_ANSWER, Problem("gsm8k", entry.id, entry.question, entry.gold, solution))


def grade_number(completion: str, problem: Problem, rule: str) -> bool:
    """See Task.grade."""
    return grade_gsm8k(completion, problem.gold, rule)


def _parse(row: Mapping[str, Any], entry_id: str) -> Entry:
    question, answer = text_field(row, "question"), text_field(row, "answer")
    try:
        gold = gold_number(answer)
    except ValueError as error:
        raise ValueError(f"'answer': {error}") from None
    return Entry(entry_id, question, gold, solution=answer if "####" in answer else f"#### {answer}")
