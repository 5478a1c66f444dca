"""Moments that are written down, for a later start of a run to measure from whatever the wall clock did meanwhile.

On the machine that wrote it down, until that restarts, a clock tells which nobody sets. Elsewhere the wall clocks do.
"""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger("titan_pt")

JUMP_SECONDS = 2.0
"""A change of the wall clock that is told. A leap second is none."""


def steady_seconds() -> float:
    """Seconds on a clock that nobody sets. It goes on while the machine sleeps, where there is such a clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def moment() -> dict[str, Any]:
    """Now, as JSON."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except (OSError, ValueError):
        boot = ""
    return {"time": time.time(), "clock": steady_seconds(), "boot": boot}


def seconds_between(then: Mapping[str, Any], now: Mapping[str, Any]) -> float:
    """Seconds between two moments, of one machine or two; never negative. A wall clock that jumped is told.

    Raises:
        KeyError, TypeError, ValueError: one of them is none.
    """
    by_wall, steady = now["time"] - float(then["time"]), now["clock"] - float(then["clock"])
    if now["boot"] and now["boot"] == then["boot"] and steady >= 0:
        if abs(by_wall - steady) > JUMP_SECONDS:
            tell_jump(by_wall - steady, "the run counts the seconds that passed")
        return steady
    if by_wall < -JUMP_SECONDS:
        tell_jump(by_wall, "no time counts between the last start and this one, on another machine")
    return max(by_wall, 0.0)


def tell_jump(seconds: float, what_counts: str) -> None:
    """Warn of a wall clock that was set."""
    way = "forward" if seconds > 0 else "back"
    logger.warning(f"The clock was set {way} by {abs(seconds):,.0f} s; {what_counts}")
