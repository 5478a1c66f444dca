"""Value types of the TOML files: sizes such as "50B" and times such as "72h"."""

import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from titan_pt.run.outgoing import is_redacted, looks_secret

_SIZE_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_size(value: Any) -> Any:
    """A count as an integer, or as text with a decimal unit: "32K" is 32_000, "50B" is 5 * 10^10.

    What is neither text nor a float is returned as it is, for the type check that follows.
    """
    if not isinstance(value, str | float):
        return value
    match = re.fullmatch(r"\s*([0-9][0-9_]{0,30}(?:\.[0-9]{1,30})?)\s*([KMBT]?)\s*", str(value), re.IGNORECASE)
    if not match or isinstance(value, float):
        raise ValueError('a count is an integer or text such as "32K", "10M", "50B"')
    # Decimal arithmetic by hand: 0.1 * 10^9 in floats is exact only by luck.
    whole, _, fraction = match[1].replace("_", "").partition(".")
    size, rest = divmod(int(whole + fraction) * _SIZE_UNITS[match[2].upper()], 10 ** len(fraction))
    if rest:
        raise ValueError("a count must come out as a whole number")
    return size


def parse_duration(unit: str) -> Callable[[Any], Any]:
    """A parser of times: a bare number is in `unit` (s, m, h or d), text names its own, as in "30m"."""

    def parse(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([smhd]?)\s*", value, re.IGNORECASE)
        if not match:
            raise ValueError(f'a time is a number of {unit} or text such as "90s", "30m", "72h", "3d"')
        number, given = float(match[1]), match[2].lower() or unit
        return number if given == unit else number * _SECONDS[given] / _SECONDS[unit]  # rounded: not of its own unit

    return parse


def check_storable(value: Any) -> None:
    """Refuse what the resolved TOML cannot or must not hold: it repeats the run, and people share it.

    Raises:
        ValueError: an integer beyond TOML's 64 bits, text that is no path or not UTF-8, what looks like a secret.
    """
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("must fit in 64 bits")
    if not isinstance(value, str):
        return
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError("must be UTF-8 text without NUL characters")
    if looks_secret(value):
        raise ValueError("looks like a secret, and the run folder keeps a copy of the config; use the environment")
    if is_redacted(value):
        raise ValueError("its secret was left out when the config was written; give it again, such as in $NAME")


def count_as_text(value: Any) -> Any:
    """An integer as text, for fields that also take a word; anything else as it is, for the check that follows."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


CountText = Annotated[str, BeforeValidator(count_as_text)]
Size = Annotated[int, BeforeValidator(parse_size)]
Seconds = Annotated[float, BeforeValidator(parse_duration("s")), Field(allow_inf_nan=False)]
Hours = Annotated[float, BeforeValidator(parse_duration("h")), Field(allow_inf_nan=False)]
