"""Tasks whose answers are numbers, graded in the form of GSM8K."""

from collections.abc import Sequence
from typing import Any

from titan_pt.tasks.grading import find_number, grade_gsm8k
from titan_pt.tasks.problems import Entry, plain_problems
from titan_pt.tasks.task import Problem, Task


def number_task(name: str, train: Sequence[Entry], evaluation: Sequence[Entry], **fields: Any) -> Task:
    """A task of problems that end in "#### 18" or the like, asked the same way at each visit.

    Args:
        fields: of the task, where they are not its defaults.
    """
    return Task(
        name=name,
        train=plain_problems(train, name),
        evaluation=plain_problems(evaluation, name),
        grade=_grade,
        find_answer=find_number,
        **fields,
    )


def _grade(completion: str, problem: Problem, rule: str) -> bool:
    return grade_gsm8k(completion, problem.gold, rule)
