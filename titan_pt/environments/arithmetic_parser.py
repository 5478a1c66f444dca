"""The exact value of a written sum, by a parser that knows numbers, + - * / and parentheses and nothing else.

Text that a model wrote is never run. There is no power, so that the value of a text is not longer than the text.
"""

import re
from fractions import Fraction

LONGEST = 200
"""Characters of the longest text that is read."""
DEEPEST = 20
"""Most parentheses and signs inside each other."""

_TOKEN = re.compile(r"\s*(?:([0-9]+(?:\.[0-9]*)?|\.[0-9]+)|(\S))", re.ASCII)
_SAME = str.maketrans("×·÷−–", "**/--")
_DECIMALS = 6


class SumError(ValueError):
    """A text has no value; says why in words that a model can learn from."""


def value_of(text: str) -> Fraction:
    """The exact value of a sum such as "(3 + 4.5) * -2 / 7".

    Raises:
        SumError: it is too long or deep, no sum, or divides by zero.
    """
    if len(text) > LONGEST:
        raise SumError(f"{len(text)} characters are too many; write at most {LONGEST}")
    tokens = _Tokens(text.translate(_SAME))
    value = _sum(tokens, 0)
    if tokens.next:
        raise SumError(f"{tokens.next!r} is not expected behind a whole sum")
    return value


def number_text(value: Fraction) -> str:
    """A number as people write it: whole numbers whole, others rounded to six decimals, small ones to six digits."""
    places = _DECIMALS
    while value and abs(value) * 10**places < 10 ** (_DECIMALS - 1):
        places += 1
    whole, decimals = divmod(abs(round(value * 10**places)), 10**places)
    sign = "-" if value < 0 else ""
    return f"{sign}{whole}.{decimals:0{places}d}".rstrip("0").rstrip(".")


class _Tokens:
    """The numbers and signs of a text, one after another."""

    def __init__(self, text: str) -> None:
        self._found = [found.group().strip() for found in _TOKEN.finditer(text)]
        self._at = 0

    @property
    def next(self) -> str:
        """The token that comes, or an empty text at the end."""
        return self._found[self._at] if self._at < len(self._found) else ""

    def take(self) -> str:
        """The token that comes, after which the following one does."""
        taken = self.next
        self._at += 1
        return taken


def _sum(tokens: _Tokens, depth: int) -> Fraction:
    value = _product(tokens, depth)
    while tokens.next in ("+", "-"):
        sign = 1 if tokens.take() == "+" else -1
        value += sign * _product(tokens, depth)
    return value


def _product(tokens: _Tokens, depth: int) -> Fraction:
    value = _factor(tokens, depth)
    while tokens.next in ("*", "/"):
        is_product = tokens.take() == "*"
        factor = _factor(tokens, depth)
        if not (is_product or factor):
            raise SumError("a division by zero has no value")
        value = value * factor if is_product else value / factor
    return value


def _factor(tokens: _Tokens, depth: int) -> Fraction:
    if depth > DEEPEST:
        raise SumError(f"more than {DEEPEST} parentheses or signs are inside each other")
    token = tokens.take()
    if token in ("+", "-"):
        value = _factor(tokens, depth + 1)
        return -value if token == "-" else value
    if token == "(":
        value = _sum(tokens, depth + 1)
        if tokens.take() != ")":
            raise SumError("a parenthesis is not closed")
        return value
    if not token or token[0] not in ".0123456789" or token == ".":
        raise SumError(f"a number is missing {f'before {token!r}' if token else 'at the end'}")
    return Fraction(token)
