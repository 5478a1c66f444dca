"""How far something long is, its rate and the time that is left: on the live line, or as lines of the log."""

import logging
import math
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from titan_pt.run.log_lines import format_seconds

logger = logging.getLogger("titan_pt")

FIRST_SECONDS, LONGEST_PAUSE = 5.0, 60.0
"""Seconds before the first line, and the most between two of them in a file; each pause is twice the one before."""
_LIVE_SECONDS = 0.5

_open: list["Progress"] = []


class Progress:
    """Context of a long action. What takes less than 5 seconds says nothing.

    Args:
        what: the action, which begins its lines.
        unit: what is counted; "bytes" are shown as MB.
        total: how many there will be; None where that is not known.
        started: when it began, by `time.monotonic`; now by default.
    """

    def __init__(self, what: str, unit: str, total: float | None = None, *, started: float | None = None) -> None:
        self.what, self._unit, self._total = what, unit, total
        self._started = time.monotonic() if started is None else started
        self._next, self._pause, self._told = self._started + FIRST_SECONDS, FIRST_SECONDS, False
        self.done, self._lock = 0.0, threading.Lock()

    def __enter__(self) -> "Progress":
        _open.append(self)
        return self

    def __exit__(self, *_: Any) -> None:
        if self in _open:
            _open.remove(self)
        if self._told and hasattr(sys.stderr, "end_live"):
            sys.stderr.end_live()

    def add(self, count: float) -> None:
        """So many more are done. Threads may call it."""
        with self._lock:
            self.at(self.done + count)

    def at(self, done: float) -> None:
        """So many are done."""
        self.done = done
        now = time.monotonic()
        if now < self._next:
            return
        self._told = True
        self._pause = _LIVE_SECONDS if hasattr(sys.stderr, "live") else min(2 * self._pause, LONGEST_PAUSE)
        self._next = now + self._pause
        logger.info(self._line(now - self._started), extra={"live": True})

    def _line(self, seconds: float) -> str:
        scale, unit = (1e6, "MB") if self._unit == "bytes" else (1, self._unit)
        rate = self.done / seconds
        count = f"{self.done / scale:,.0f}"
        eta = ""
        if self._total:
            part = min(1.0, self.done / self._total)
            count = f"{count} of {self._total / scale:,.0f} {unit} ({part:.0%})"
            eta = f", eta {format_seconds(max(0.0, self._total - self.done) / rate if rate else math.inf)}"
        else:
            count = f"{count} {unit}"
        return f"{self.what}: {count}, {_rate(rate / scale)} {unit}/s{eta}"


@contextmanager
def growing(what: str, folder: Path) -> Iterator[None]:
    """Context in which a library fills a folder; how much more is in it is looked at every second."""
    before, over = size_of(folder), threading.Event()

    def watch() -> None:
        with Progress(what, "bytes") as progress:
            while not over.wait(1.0):
                progress.at(max(0, size_of(folder) - before))

    watcher = threading.Thread(target=watch, name="progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder; links are not followed."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_size
    return total


def counted(late: ExitStack, done: int, what: str, unit: str, total: float | None, started: float) -> None:
    """So many are done of what has taken a while: begins a progress in this context, or goes on with the one there."""
    if not _open or _open[-1].what != what:
        late.enter_context(Progress(what, unit, total, started=started))
    _open[-1].at(done)


def more(count: float) -> None:
    """So many more are done of what the innermost open progress counts, where there is one."""
    if _open:
        _open[-1].add(count)


def reached(done: float) -> None:
    """So many are done of what the innermost open progress counts, where there is one."""
    if _open:
        _open[-1].at(done)


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
