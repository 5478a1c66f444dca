"""Generated word problems of several steps with their working, in the form of GSM8K: numbered, the same everywhere.

All of it is made here: no text of GSM8K or of another set is in it. No torch here.
"""

import random
from collections.abc import Callable
from typing import NamedTuple

from titan_pt.data.builtin.questions import QUESTION_ANSWER

_NAMES = (
    "Tom",
    "Anna",
    "Ben",
    "Lea",
    "Sam",
    "Mia",
    "Omar",
    "Eva",
    "Paul",
    "Nina",
    "Leo",
    "Ida",
    "Ravi",
    "Rosa",
    "Finn",
)
_THINGS = (
    "apples",
    "pears",
    "books",
    "cards",
    "pens",
    "cups",
    "eggs",
    "stamps",
    "shells",
    "candles",
    "cakes",
    "tickets",
)
_PLACES = ("school", "library", "farm", "bakery", "museum", "garden centre", "theatre", "sports club")


class WorkedProblem(NamedTuple):
    """A question with its working, a step a line."""

    question: str
    steps: tuple[str, ...]
    answer: int

    @property
    def solution(self) -> str:
        """The working and the marked answer."""
        return "\n".join((*self.steps, f"#### {self.answer}"))

    @property
    def document(self) -> str:
        """Training text."""
        return f"{QUESTION_ANSWER.replace('{question}', self.question)} {self.solution}\n"


class WorkedProblems:
    """So many problems of all kinds, in the order of their numbers.

    Args:
        rows: give rows of GSM8K instead of texts.
    """

    generated = True
    size = 1_000_000

    def __init__(self, seed: int, *, rows: bool = False) -> None:
        self._seed, self._rows = seed, rows
        self.fingerprint = f"worked-problems-1-{seed}"

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> str | dict[str, str]:
        if not 0 <= index < self.size:
            raise IndexError(index)
        made = worked_problem(random.Random(f"{self._seed}/{index}"))
        return {"question": made.question, "answer": made.solution} if self._rows else made.document


def worked_problem(rng: random.Random) -> WorkedProblem:
    """A problem of any kind."""
    return rng.choice(_KINDS)(rng)


def _two(rng: random.Random, words: tuple[str, ...]) -> tuple[str, str]:
    first, second = rng.sample(words, 2)
    return first, second


def _shopping(rng: random.Random) -> WorkedProblem:
    (a, b), name = _two(rng, _THINGS), rng.choice(_NAMES)
    n, m, p, q = rng.randint(2, 12), rng.randint(2, 12), rng.randint(1, 15), rng.randint(1, 15)
    total = n * p + m * q
    paid = -(-total // 50) * 50 + rng.choice((0, 50))
    return WorkedProblem(
        f"{name} buys {n} {a} at ${p} each and {m} {b} at ${q} each, and pays with ${paid}. How many dollars does "
        f"{name} "
        "get back?",
        (
            f"The {a} cost {n} * {p} = {n * p} dollars.",
            f"The {b} cost {m} * {q} = {m * q} dollars.",
            f"Together that is {n * p} + {m * q} = {total} dollars.",
            f"{name} gets {paid} - {total} = {paid - total} dollars back.",
        ),
        paid - total,
    )


def _sharing(rng: random.Random) -> WorkedProblem:
    thing, name = rng.choice(_THINGS), rng.choice(_NAMES)
    boxes, inside, friends = rng.randint(2, 9), rng.randint(5, 20), rng.randint(2, 9)
    total = boxes * inside
    each = rng.randint(1, (total - 1) // friends)
    kept = total - each * friends
    return WorkedProblem(
        f"{name} has {boxes} boxes with {inside} {thing} in each. {name} keeps {kept} of the {thing} and shares the "
        f"others equally among {friends} friends. How many {thing} does each friend get?",
        (
            f"There are {boxes} * {inside} = {total} {thing}.",
            f"{name} shares {total} - {kept} = {total - kept} of them.",
            f"Each friend gets {total - kept} / {friends} = {each}.",
        ),
        each,
    )


def _journey(rng: random.Random) -> WorkedProblem:
    a, b, s, t = rng.randint(1, 6), rng.randint(1, 6), 5 * rng.randint(2, 18), 5 * rng.randint(2, 18)
    total = a * s + b * t
    return WorkedProblem(
        f"A train travels {a} hours at {s} km per hour and then {b} hours at {t} km per hour. How far does it travel, "
        "in km?",
        (
            f"In the first part it travels {a} * {s} = {a * s} km.",
            f"In the second part it travels {b} * {t} = {b * t} km.",
            f"In all that is {a * s} + {b * t} = {total} km.",
        ),
        total,
    )


def _percent(rng: random.Random) -> WorkedProblem:
    percent, hundreds, more = 5 * rng.randint(1, 15), rng.randint(1, 9), rng.randint(5, 60)
    price = 20 * hundreds
    off = price * percent // 100
    return WorkedProblem(
        f"A coat costs ${price}. In a sale it is {percent}% cheaper, and a hat costs ${more}. How many dollars do the "
        f"coat and the hat cost in the sale?",
        (
            f"{percent}% of {price} is {price} * {percent} / 100 = {off} dollars.",
            f"The coat costs {price} - {off} = {price - off} dollars.",
            f"Both cost {price - off} + {more} = {price - off + more} dollars.",
        ),
        price - off + more,
    )


def _ages(rng: random.Random) -> WorkedProblem:
    (a, b), young, times, years = _two(rng, _NAMES), rng.randint(3, 15), rng.randint(2, 5), rng.randint(2, 20)
    old = young * times
    return WorkedProblem(
        f"{a} is {young} years old, and {b} is {times} times as old. How old will {a} and {b} be together in {years} "
        "years?",
        (
            f"{b} is {times} * {young} = {old} years old.",
            f"In {years} years {a} will be {young} + {years} = {young + years}, and {b} {old} + {years} = "
            f"{old + years}.",
            f"Together that is {young + years} + {old + years} = {young + old + 2 * years}.",
        ),
        young + old + 2 * years,
    )


def _rectangle(rng: random.Random) -> WorkedProblem:
    width, more, price = rng.randint(3, 30), rng.randint(1, 20), rng.randint(2, 12)
    length = width + more
    return WorkedProblem(
        f"A garden is {width} m wide and {more} m longer than it is wide. A fence around it costs ${price} per metre. "
        f"How many dollars does the fence cost?",
        (
            f"The garden is {width} + {more} = {length} m long.",
            f"The fence is 2 * ({width} + {length}) = {2 * (width + length)} m long.",
            f"It costs {2 * (width + length)} * {price} = {2 * (width + length) * price} dollars.",
        ),
        2 * (width + length) * price,
    )


def _average(rng: random.Random) -> WorkedProblem:
    count = rng.randint(3, 5)
    numbers = [rng.randint(2, 60) for _ in range(count - 1)]
    mean = sum(numbers) // (count - 1) + rng.randint(1, 6)
    last = mean * count - sum(numbers)
    listed = f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"
    return WorkedProblem(
        f"{rng.choice(_NAMES)} scored {listed} points in {count - 1} games. How many points are needed in the next "
        f"game for an average of {mean} points?",
        (
            f"{count} games with an average of {mean} make {count} * {mean} = {mean * count} points.",
            f"So far there are {' + '.join(map(str, numbers))} = {sum(numbers)} points.",
            f"The next game needs {mean * count} - {sum(numbers)} = {last} points.",
        ),
        last,
    )


def _fraction(rng: random.Random) -> WorkedProblem:
    whole, part, place = rng.randint(3, 8), rng.randint(1, 2), rng.choice(_PLACES)
    share, more = rng.randint(3, 25), rng.randint(1, 30)
    total = whole * share
    left = total - part * share
    return WorkedProblem(
        f"{total} people are at the {place}. {part}/{whole} of them leave, and then {more} more people come. How many "
        f"people are at the {place} now?",
        (
            f"{part}/{whole} of {total} is {total} / {whole} * {part} = {part * share}.",
            f"When they have left, {total} - {part * share} = {left} people are there.",
            f"Then there are {left} + {more} = {left + more}.",
        ),
        left + more,
    )


def _wages(rng: random.Random) -> WorkedProblem:
    name, hours, days, pay = rng.choice(_NAMES), rng.randint(2, 9), rng.randint(2, 6), rng.randint(6, 25)
    spent = rng.randint(5, hours * days * pay - 1)
    total = hours * days * pay
    return WorkedProblem(
        f"{name} works {hours} hours a day for {days} days at ${pay} an hour, and spends ${spent} of the money. How "
        f"many dollars has {name} left?",
        (
            f"{name} works {hours} * {days} = {hours * days} hours.",
            f"That earns {hours * days} * {pay} = {total} dollars.",
            f"{total} - {spent} = {total - spent} dollars are left.",
        ),
        total - spent,
    )


def _equation(rng: random.Random) -> WorkedProblem:
    x, a, b = rng.randint(-12, 30), rng.randint(2, 12), rng.randint(1, 50)
    c = a * x + b
    return WorkedProblem(
        f"Solve {a}x + {b} = {c} for x.",
        (
            f"Subtract {b} from both sides: {a}x = {c} - {b} = {a * x}.",
            f"Divide by {a}: x = {a * x} / {a} = {x}.",
        ),
        x,
    )


def _comparison(rng: random.Random) -> WorkedProblem:
    (a, b), thing, n = _two(rng, _NAMES), rng.choice(_THINGS), rng.randint(4, 40)
    times, fewer = rng.randint(2, 6), rng.randint(1, 3)
    other = times * n - fewer
    return WorkedProblem(
        f"{a} has {n} {thing}. {b} has {fewer} fewer than {times} times as many. How many {thing} do they have in all?",
        (
            f"{times} times as many are {times} * {n} = {times * n}.",
            f"{b} has {times * n} - {fewer} = {other}.",
            f"In all they have {n} + {other} = {n + other}.",
        ),
        n + other,
    )


def _rate(rng: random.Random) -> WorkedProblem:
    fill, drain, minutes = rng.randint(5, 30), rng.randint(1, 4), rng.randint(4, 45)
    start = rng.randint(0, 100)
    gain = fill - drain
    return WorkedProblem(
        f"A tank holds {start} litres. A pipe brings {fill} litres a minute, and {drain} litres a minute leak out. "
        f"How many litres are in the tank after {minutes} minutes?",
        (
            f"Each minute the tank gains {fill} - {drain} = {gain} litres.",
            f"In {minutes} minutes it gains {minutes} * {gain} = {minutes * gain} litres.",
            f"Then it holds {start} + {minutes * gain} = {start + minutes * gain} litres.",
        ),
        start + minutes * gain,
    )


_KINDS: tuple[Callable[[random.Random], WorkedProblem], ...] = (
    _shopping,
    _sharing,
    _journey,
    _percent,
    _ages,
    _rectangle,
    _average,
    _fraction,
    _wages,
    _equation,
    _comparison,
    _rate,
)
