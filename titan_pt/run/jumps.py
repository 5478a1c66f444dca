"""Seconds between two moments, whatever the wall clocks did meanwhile. Imported where there are two.

On the machine that wrote one down, until that restarts, a clock tells which nobody sets. Elsewhere the wall clocks do.
"""

import logging
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger("titan_pt")

JUMP_SECONDS = 2.0
"""A change of the wall clock that is told. A leap second is none."""
_LONGEST_SECONDS = 7 * 86400.0
"""What may pass between two machines' starts of a run; their clocks differ where they say more."""


def seconds_between(then: Mapping[str, Any], now: Mapping[str, Any], *, tell: bool = False) -> float:
    """Seconds between two moments, of one machine or two; never negative, nor the difference of two machines' clocks.

    With `tell` it warns of a wall clock that jumped.

    Raises:
        KeyError, TypeError, ValueError: one of them is none.
    """
    by_wall, steady = now["time"] - float(then["time"]), now["clock"] - float(then["clock"])
    if now["boot"] and now["boot"] == then["boot"] and 0 <= steady <= now["clock"]:
        if tell and abs(by_wall - steady) > JUMP_SECONDS:
            tell_jump(by_wall - steady, "the run counts the seconds that passed")
        return steady
    wrong = not -JUMP_SECONDS <= by_wall <= _LONGEST_SECONDS
    if tell and wrong:
        tell_jump(by_wall, "no time counts between the last start and this one, on another machine")
    return 0.0 if wrong else max(by_wall, 0.0)


def tell_jump(seconds: float, what_counts: str) -> None:
    """Warn of a wall clock that was set."""
    way = "forward" if seconds > 0 else "back"
    logger.warning(f"The clock was set {way} by {abs(seconds):,.0f} s; {what_counts}")
