"""Generated sums that are too hard to do in the head, and conversations that answer them: numbered, always the same.

A conversation calls the calculator, reads its result and answers; or it answers at once, which is right here and hardly
ever so of a small model: fine-tuning shows both forms, rewards teach which of them to take. No torch here.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from titan_pt.data.builtin.questions import HOLDOUT_FRACTION, is_held_out

CALCULATOR: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": "+ - * / ( )",
        "parameters": {
            "type": "object",
            "properties": {"expression": {"type": "string", "description": "a sum such as (3 + 4.5) * 2"}},
            "required": ["expression"],
        },
    },
}
"""The calculator's JSON schema, as chat templates tell a model of it."""

NUM_SUMS = 6_000
"""Sums of a level; some may be equal."""

# What is asked, and what is to be calculated.
_PLAIN = ("What is {x}?", "{x} = ?", "Calculate {x}.")
_WORDS = {
    "{a} + {b}": ("Tom has {a} pens and gets {b}. How many?", "{a} cats and {b} dogs. How many animals?"),
    "{a} - {b}": ("Of {a} eggs {b} break. How many are left?", "Ann has {a} and gives {b} away. What is left?"),
    "{a} * {b}": ("{a} boxes of {b} pens. How many pens?", "{a} rows with {b} seats each. How many seats?"),
}
_CHAINS = ("({a} + {b}) * {c}", "{a} * {b} - {c}", "{a} * ({b} - {c})", "{a} * {b} + {c}", "({a} - {b}) * {c}")


@dataclass(frozen=True)
class ToolSum:
    """A question, the sum that answers it, and its value."""

    question: str
    expression: str
    answer: int


@dataclass(frozen=True)
class _SumLevel:
    description: str
    draw: Callable[[random.Random], ToolSum]


def _same_places(rng: random.Random) -> ToolSum:
    a, b = sorted((rng.randint(10, 99) for _ in range(2)), reverse=True)
    sign = rng.choice("+-*")
    expression = f"{a} {sign} {b}"
    return ToolSum(f"{expression} = ?", expression, {"+": a + b, "-": a - b, "*": a * b}[sign])


def _two(most_digits: int, *, in_words: bool) -> Callable[[random.Random], ToolSum]:
    def draw(rng: random.Random) -> ToolSum:
        # Of each length as many: of long ones a model learns to copy any number, not those that it has seen.
        sizes = (10 ** rng.randint(1, most_digits - 1) for _ in range(2))
        a, b = sorted((rng.randrange(size, 10 * size) for size in sizes), reverse=True)
        form = rng.choice(tuple(_WORDS))
        wording = rng.choice((*_PLAIN, *_WORDS[form]) if in_words else _PLAIN)
        expression = form.format(a=a, b=b)
        value = {"+": a + b, "-": a - b, "*": a * b}[form[4]]
        return ToolSum(wording.format(x=expression, a=a, b=b), expression, value)

    return draw


def _three(rng: random.Random) -> ToolSum:
    a, b, c = (rng.randint(11, 99) for _ in range(3))
    number = rng.randrange(len(_CHAINS))
    value = ((a + b) * c, a * b - c, a * (b - c), a * b + c, (a - b) * c)[number]
    expression = _CHAINS[number].format(a=a, b=b, c=c)
    return ToolSum(rng.choice(_PLAIN).format(x=expression), expression, value)


_LEVELS = {
    1: _SumLevel("two numbers of 2 digits, always asked in the same way", _same_places),
    2: _SumLevel("two numbers of 2 to 5 digits", _two(5, in_words=False)),
    3: _SumLevel("two numbers of 2 or 3 digits, also in words", _two(3, in_words=True)),
    4: _SumLevel("three numbers from 11 to 99, with parentheses", _three),
}
LEVELS: dict[int, str] = {level: row.description for level, row in _LEVELS.items()}
"""Description of each level's sums, by its number; 1 is the easiest."""


def tool_sum(level: int, index: int) -> ToolSum:
    """Sum `index` of a level, from 0 to below NUM_SUMS."""
    return _LEVELS[level].draw(random.Random(f"tool_sums/{level}/{index}"))


class ToolSums:
    """Conversations about the sums of a level, without those that the task "calculator" only evaluates on.

    Args:
        called: share of them that call the calculator; the others answer at once.
    """

    def __init__(self, level: int, called: float = 0.6) -> None:
        self._level, self._called = level, called
        self.fingerprint = f"tool_sums-1-level-{level}-{called:g}"

    def __len__(self) -> int:
        return NUM_SUMS

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < NUM_SUMS:
            raise IndexError(index)
        made = tool_sum(self._level, index)
        while is_held_out(made.question, HOLDOUT_FRACTION):
            index = (index + 1) % NUM_SUMS
            made = tool_sum(self._level, index)
        calls = random.Random(f"called/{self._level}/{index}").random() < self._called
        return {"messages": conversation(made, calls=calls), "tools": [CALCULATOR]}


def conversation(made: ToolSum, *, calls: bool) -> list[dict[str, Any]]:
    """The messages that answer a sum, with the calculator or at once."""
    asked, said = {"role": "user", "content": made.question}, {"role": "assistant", "content": f"#### {made.answer}"}
    if not calls:
        return [asked, said]
    call = {"name": "calculator", "arguments": {"expression": made.expression}}
    calling = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]}
    return [asked, calling, {"role": "tool", "name": "calculator", "content": str(made.answer)}, said]
