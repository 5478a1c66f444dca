"""Generated arithmetic in levels of difficulty, answered in the form of GSM8K."""

from collections.abc import Sequence

from titan_pt.config.schema.grpo import GrpoTask
from titan_pt.data.builtin.arithmetic import LEVELS, num_problems, problem
from titan_pt.data.permutation import permute
from titan_pt.tasks.numbers import number_task
from titan_pt.tasks.options import level_of
from titan_pt.tasks.problems import Entry, hold_out
from titan_pt.tasks.task import Task, refuse_unused

# A level with more problems gives a fixed choice of so many.
_MOST_PROBLEMS = 20_000


def build(row: GrpoTask, _seed: int) -> Task:
    """The task of all problems of `level`, or of a fixed choice of them; the same for every seed."""
    refuse_unused(row, "level", "holdout_fraction")
    level = level_of(row, LEVELS)
    train, evaluation = hold_out(_entries(row.name, level), row.holdout_fraction)
    return number_task(row.name, train, evaluation)


def _entries(name: str, level: int) -> list[Entry]:
    size = num_problems(level)
    numbers: Sequence[int] = range(size)
    if size > _MOST_PROBLEMS:
        numbers = [permute(number, size, b"arithmetic") for number in range(_MOST_PROBLEMS)]
    found = ((number, problem(level, number)) for number in numbers)
    return [
        Entry(f"{name}/level-{level}:{number}", made.question, made.answer, solution=made.solution)
        for number, made in found
    ]
