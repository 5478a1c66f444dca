"""Bounds on what one rendering of a chat template may make, checked before it is made.

Filters, methods and operators of a template are foreign: a width of 3 billion, or a text doubled 60 times, would take
all memory within one call, in which no time can be checked.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

from jinja2 import TemplateError, filters, pass_environment
from jinja2.utils import Namespace

WIDEST = 10**6
"""Longest text or list of one multiplication, and largest number that a filter or a method takes."""
LONGEST = 10**7
"""Longest text or list that a call makes, and longest rendering, in characters or items."""
TOTAL = 10**8
"""Most that all calls of one rendering make."""
_MOST_BITS = 10**5
_VALUES = frozenset("default d int float map select reject selectattr rejectattr sum join".split())  # noqa: SIM905
_WRITING = frozenset({"string", "pprint", "tojson", "escape", "e", "forceescape", "urlencode", "xmlattr", "format"})


class TooMuchError(TemplateError):
    """A rendering would take too much time or memory."""


class Made:
    """What a rendering has made so far."""

    def __init__(self) -> None:
        self.left = TOTAL

    def add(self, size: int) -> None:
        self.left -= size
        if size > LONGEST or self.left < 0:
            raise TooMuchError(f"makes a text or list that is too long; a rendering has at most {LONGEST:,} characters")


def size_of(value: Any) -> int:
    """Length of a value written as text, about; of one above LONGEST, any number above it."""
    total, waiting = 0, [value]
    while waiting and total <= LONGEST:
        one = waiting.pop()
        if isinstance(one, str | bytes):
            total += len(one)
        elif isinstance(one, dict):
            total += 2 + 4 * len(one)
            waiting += [*one.keys(), *one.values()] if total <= LONGEST else []
        elif isinstance(one, list | tuple):
            total += 2 + 2 * len(one)
            waiting += one if total <= LONGEST else []
        elif isinstance(one, Namespace):
            waiting.append(one._Namespace__attrs)
            total += 16
        else:
            total += 8
    return total


def check_numbers(name: str, values: Iterable[Any]) -> None:
    """Raise a TooMuchError where a call is given a number that would be a width too large."""
    for value in values:
        if isinstance(value, int) and abs(value) > WIDEST:
            raise TooMuchError(f"{name}: a number of {value.bit_length()} bits is too large")


def check_power(left: Any, right: Any) -> None:
    if abs(right) > 64 or (isinstance(left, int) and left.bit_length() * abs(right) > _MOST_BITS):
        raise TooMuchError("a power is too large")


def check_product(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > _MOST_BITS:
        raise TooMuchError("a product is too large")
    for one, other in ((left, right), (right, left)):
        if isinstance(one, str | bytes | list | tuple) and isinstance(other, int) and len(one) * other > WIDEST:
            raise TooMuchError("a product is too long")


def check_percent(text: Any, values: Any) -> int:
    """Raise a TooMuchError where a field of "%5d" is too wide; returns the most that formatting makes."""
    if not isinstance(text, str | bytes):
        return 0
    text = text if isinstance(text, str) else text.decode("latin-1")
    if re.search(r"%[^a-zA-Z]*\d{5}|\*", text):
        raise TooMuchError("a field is too wide")
    return len(text) + text.count("%") * _largest(values)


def _check_braces(text: Any, values: Any) -> int:
    """As `check_percent`, of "{:5}"; a width that is an argument itself is not supported."""
    fields = text.replace("{{", "").replace("}}", "")
    if re.search(r"\{[^{}]*(\{|\d{5})", fields):
        raise TooMuchError("a field is too wide")
    return len(text) + text.count("{") * _largest(values)


def _largest(values: Any) -> int:
    values = values.values() if isinstance(values, dict) else values if isinstance(values, tuple) else [values]
    return max((size_of(value) for value in values), default=0)


def most_of_filter(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """The most that a filter makes, as far as it depends on more than the length of its value.

    Args:
        args: of the filter, the value first.

    Raises:
        TooMuchError: an argument is too large.
    """
    value, further = args[0] if args else "", [*args[1:], *kwargs.values()]
    if name not in _VALUES and name != "format":
        check_numbers(name, further)
    if name == "format":
        return check_percent(value, tuple(further))
    if name == "replace" and len(further) > 1:
        return _replaced(str(value), str(further[0]), str(further[1]))
    if name == "indent":
        widths = [len(one) if isinstance(one, str) else one for one in further if isinstance(one, str | int)]
        return size_of(value) + (str(value).count("\n") + 1) * max(widths, default=4)
    if name == "wordwrap":
        return size_of(value) * (1 + max((len(one) for one in further if isinstance(one, str)), default=1))
    if name == "tojson" and any(isinstance(one, int | str) and _indent(one) > 100 for one in further):
        raise TooMuchError("tojson: an indent is too large")
    return size_of(value) if name in _WRITING else 0


def _indent(value: int | str) -> int:
    return len(value) if isinstance(value, str) else value


def most_of_method(name: str, owner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """As `most_of_filter`, of a method of a text or a number."""
    if isinstance(owner, str) and name in ("format", "format_map"):
        return _check_braces(owner, (*args, *kwargs.values()))
    check_numbers(name, [*args, *kwargs.values()])
    if isinstance(owner, int | float):
        return 0
    if name == "replace" and len(args) > 1:
        return _replaced(owner, args[0], args[1])
    if name == "expandtabs":
        return len(owner) * max(8, *(one for one in (*args, *kwargs.values()) if isinstance(one, int)), 1)
    if name == "translate":
        return len(owner) * max(1, *map(_largest, args))
    if name == "join":
        parts = args[0] if args and isinstance(args[0], list | tuple | dict | str) else ()
        return sum(map(size_of, parts)) + len(parts) * len(owner)
    return 0


def _replaced(text: Any, old: Any, new: Any) -> int:
    return len(text) + text.count(old) * max(0, len(new) - len(old))


def joining(made: Callable[[int], None]) -> Callable[..., str]:
    """The filter `join`, which adds up what it joins."""

    @pass_environment
    def join(environment: Any, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
        if attribute is not None:
            value = map(filters.make_attrgetter(environment, attribute), value)
        return str(d).join(texts(value, made, between=len(str(d))))

    return join


def summing(add: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """The filter `sum`, of which each addition is bounded."""

    @pass_environment
    def total(environment: Any, iterable: Iterable[Any], attribute: str | int | None = None, start: Any = 0) -> Any:
        if attribute is not None:
            iterable = map(filters.make_attrgetter(environment, attribute), iterable)
        for item in iterable:
            start = add(start, item)
        return start

    return total


def texts(values: Iterable[Any], made: Callable[[int], None], *, between: int = 0) -> list[str]:
    """Values as texts, of which the sum is bounded."""
    parts, size = [], 0
    for value in values:
        size += (len(value) if isinstance(value, str) else size_of(value)) + between
        if size > LONGEST:
            made(size)
        parts.append(str(value))
    made(size)
    return parts
