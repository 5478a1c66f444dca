"""Reads `goodput.jsonl`: what all starts of a run spent, what was lost with a kill, and what passed between them."""

import contextlib
import logging
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from titan_pt.run.jumps import seconds_between
from titan_pt.run.ledger import USEFUL, moment
from titan_pt.run.own_json import read_steps

logger = logging.getLogger("titan_pt")

_LOST = (*USEFUL, "data", "compile")
"""What a step takes, and what is lost with it."""


def earlier_seconds(path: Path, step: int, start_seconds: float) -> Counter[str]:
    """Seconds of the starts before this one by what took them.

    Args:
        step: the step that this start goes on from; the later ones are "lost".
        start_seconds: how long this start has taken. The time between the last start and this one is a "restart",
            unless the run was done: then somebody let it go on.
    """
    account = _Account()
    try:
        for line in _lines(path):
            account.add(line)
    except OSError as error:  # of no use to a run
        logger.warning(f"{path} could not be read: {error}; the goodput is that of this start")
        return Counter()
    account.go_on_from(step, {**moment(), "waited": start_seconds})
    return Counter(account.spent())


def forget(path: Path, _step: int, _start_seconds: float) -> Counter[str]:
    """Remove the file, which is of other runs: without checkpoints each start is one."""
    with contextlib.suppress(OSError):
        path.unlink()
    return Counter()


def all_seconds(path: Path) -> dict[str, float]:
    """Seconds of all starts up to the last line, by what took them."""
    account = _Account()
    for line in _lines(path):
        account.add(line)
    return account.spent()


def goodput_of(seconds: Mapping[str, float]) -> float:
    """The part of all time that made steps which count, from 0 to 1."""
    return sum(seconds.get(kind, 0.0) for kind in USEFUL) / (sum(seconds.values()) or 1.0)


class _Account:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._kept: list[tuple[int, dict[str, float]]] = []
        """(step, seconds of it and those before) of every line whose steps count."""
        self._last: Mapping[str, Any] | None = None

    def spent(self) -> dict[str, Any]:
        """Seconds by what took them, without those that took none."""
        return {kind: seconds for kind, seconds in self.seconds.items() if seconds > 1e-9}

    def add(self, line: Mapping[str, Any]) -> None:
        """One line, in the order in which they were written."""
        step, seconds = int(line["step"]), {str(kind): float(value) for kind, value in line["seconds"].items()}
        if line.get("begins"):
            self.go_on_from(step, {**line, "waited": sum(seconds.values())})
        before = self._last["seconds"] if self._last and not line.get("begins") else {}
        spent = {kind: value - before.get(kind, 0.0) for kind, value in seconds.items()}
        for kind, value in spent.items():
            self.seconds[kind] += value
        self._kept.append((step, {kind: spent.get(kind, 0.0) for kind in _LOST}))
        self._last = {**line, "seconds": seconds}

    def go_on_from(self, step: int, begins: Mapping[str, Any]) -> None:
        """Another start goes on from this step; it has `waited` so many seconds until it trained."""
        for _, spent in [kept for kept in self._kept if kept[0] > step]:
            for kind, value in spent.items():
                self.seconds[kind] -= value
                self.seconds["lost"] += value
        self._kept = [kept for kept in self._kept if kept[0] <= step]
        if self._last and not self._last.get("done"):
            self.seconds["restart"] += max(0.0, seconds_between(self._last, begins) - begins["waited"])


def _lines(path: Path) -> Iterator[Mapping[str, Any]]:
    """The whole lines; a start that was killed may have left a part of one."""
    for _, _, line in read_steps(path):
        try:
            if line is None:
                raise ValueError("no line")
            seconds_between(line, line)
            seconds = {kind: float(value) for kind, value in line["seconds"].items()}
            if not all(map(math.isfinite, seconds.values())):
                raise ValueError("no seconds")
            yield {**line, "seconds": seconds}
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError):
            logger.warning(f"{path}: a line that is not whole is passed over")
