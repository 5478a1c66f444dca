"""The task "digits": an answer is right when it has a digit in it. A random model finds that out by trying."""

from dataclasses import dataclass

from titan_pt.config.schema.grpo import GrpoTask
from titan_pt.tasks.task import Problem, Task, register_task


@dataclass(frozen=True)
class Questions:
    """Numbered problems. The fingerprint changes when they do: a resumed run checks it."""

    first: int
    size: int

    @property
    def fingerprint(self) -> str:
        return f"digits-1-{self.first}-{self.size}"

    def __len__(self) -> int:
        return self.size

    def get(self, index: int, _visit: int) -> Problem:
        number = self.first + index
        return Problem("digits", id=f"digits/{number}", question=f"What comes after {number}?", gold=str(number + 1))


def has_digit(completion: str, _problem: Problem, _rule: str) -> bool:
    """Whether an answer is right. A stricter task would compare with `_problem.gold`."""
    return any(letter.isdigit() for letter in completion)


def digits(row: GrpoTask, _seed: int) -> Task:
    """The task of a row of [[grpo.tasks]]; what the row sets besides, such as rewards, is added to it."""
    return Task(
        name=row.name,
        train=Questions(0, 80),
        evaluation=Questions(80, 20),  # none of them is trained on
        grade=has_digit,
        open_ended=True,  # many answers are right, so nonsense that counts is no mistake of the task
    )


register_task("digits", digits)
