"""Generated lists of digits to sort: a skill that rewards can bring a small model that has hardly begun to have it."""

import re

from titan_pt.config.schema.grpo import GrpoTask
from titan_pt.data.builtin.sorting import LEVELS, num_lists, sorting_problem
from titan_pt.data.permutation import permute
from titan_pt.tasks.options import level_of
from titan_pt.tasks.problems import Entry, hold_out, plain_problems
from titan_pt.tasks.task import Problem, Task, refuse_unused

# A level with more lists gives a fixed choice of so many.
_MOST_PROBLEMS = 20_000
_ANSWER = re.compile(r"[0-9](?: [0-9])*")


def build(row: GrpoTask, _seed: int) -> Task:
    """The task of the lists of `level`, or of a fixed choice of them; the same for every seed."""
    refuse_unused(row, "level", "holdout_fraction")
    level = level_of(row, LEVELS)
    train, evaluation = hold_out(_entries(row.name, level), row.holdout_fraction)
    return Task(
        name=row.name,
        train=plain_problems(train, row.name),
        evaluation=plain_problems(evaluation, row.name),
        grade=_grade,
        find_answer=_find,
    )


def _entries(name: str, level: int) -> list[Entry]:
    size = num_lists(level)
    numbers = [permute(number, size, b"sorting") for number in range(min(size, _MOST_PROBLEMS))]
    found = ((number, sorting_problem(level, number)) for number in numbers)
    return [
        Entry(f"{name}/level-{level}:{number}", made.question, made.answer, solution=made.answer)
        for number, made in found
    ]


def _find(completion: str) -> str | None:
    """The whole answer, where it is nothing but digits with blanks between them."""
    found = _ANSWER.fullmatch(completion.strip())
    return found and found[0]


def _grade(completion: str, problem: Problem, rule: str) -> bool:
    """Lenient: by the digits of the first line, whatever stands between them."""
    if rule == "lenient":
        first = completion.strip().partition("\n")[0]
        return re.findall(r"[0-9]", first) == problem.gold.split()
    return _find(completion) == problem.gold
