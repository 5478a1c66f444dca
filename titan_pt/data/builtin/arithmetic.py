"""Generated arithmetic problems in levels of difficulty: finite, numbered, the same on every machine. No torch here."""

import operator
from dataclasses import dataclass

from titan_pt.data.builtin.questions import QUESTION_ANSWER

_RESULTS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


@dataclass(frozen=True)
class ArithmeticProblem:
    """One question, and how it is answered in the form of GSM8K."""

    question: str
    """Question text, such as "What is 3 + 4?"."""
    solution: str
    """A line of working, then the answer behind its marker: "3 + 4 = 7\\n#### 7"."""
    answer: str
    """The bare number, such as "7"; a negative one has its sign in front."""

    @property
    def document(self) -> str:
        """Training text: question, working and marked answer."""
        return f"{QUESTION_ANSWER.replace('{question}', self.question)} {self.solution}\n"

    @property
    def plain_document(self) -> str:
        """Training text without the answer's marker: right, but not in the form that is graded."""
        return f"{QUESTION_ANSWER.replace('{question}', self.question)} {self.solution.splitlines()[0]}\n"


@dataclass(frozen=True)
class _Level:
    """Problems of every operation with every pair of numbers from 0 to below `numbers`."""

    operations: str
    numbers: int
    description: str


_LEVELS = {
    1: _Level("+", 10, "sums of numbers from 0 to 9"),
    2: _Level("+-", 20, "sums and differences of numbers from 0 to 19"),
    3: _Level("+-", 100, "sums and differences of numbers from 0 to 99"),
    4: _Level("+-*", 100, "sums, differences and products of numbers from 0 to 99"),
    5: _Level("+-*", 1000, "sums, differences and products of numbers from 0 to 999"),
}

LEVELS: dict[int, str] = {level: row.description for level, row in _LEVELS.items()}
"""Description of each level's problems, by its number; 1 is the easiest."""


def num_problems(level: int) -> int:
    """Number of different problems of a level.

    Raises:
        ValueError: no such level.
    """
    row = _row(level)
    return len(row.operations) * row.numbers**2


def problem(level: int, index: int) -> ArithmeticProblem:
    """Problem `index` of a level, from 0 to below `num_problems(level)`; no two are the same.

    Raises:
        ValueError: no such level.
        IndexError: no such problem.
    """
    row = _row(level)
    if not 0 <= index < num_problems(level):
        raise IndexError(index)
    pair, number = divmod(index, len(row.operations))
    a, b = divmod(pair, row.numbers)
    return make_problem(a, row.operations[number], b)


def make_problem(a: int, operation: str, b: int) -> ArithmeticProblem:
    """The problem of two numbers and one of the operations + - *."""
    result = _RESULTS[operation](a, b)
    return ArithmeticProblem(
        question=f"What is {a} {operation} {b}?",
        solution=f"{a} {operation} {b} = {result}\n#### {result}",
        answer=str(result),
    )


def _row(level: int) -> _Level:
    if level not in _LEVELS:
        raise ValueError(f"level = {level}: allowed are {', '.join(map(str, _LEVELS))}")
    return _LEVELS[level]
