"""The one layer that retries: time-outs, dropped connections, 429, 5xx, short and damaged answers."""

import logging
import math
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from titan_pt.config.errors import ConfigError
from titan_pt.data.sources.documents import Stopped
from titan_pt.run.exit_codes import Preempted, Stalled
from titan_pt.run.signals import stop_requested

logger = logging.getLogger("titan_pt")

T = TypeVar("T")

_POLL_SECONDS = 0.2
_DENIALS_AT_START = 3
_UNFIT_TRIES = 2  # the second would show that the first was a bad copy


class Transient(Exception):
    """A failure of the network or the server that may pass: the same request is made again.

    Args:
        retry_after: seconds that the server asks for.
        progress: some bytes came, and the next attempt goes on behind them.
    """

    def __init__(self, reason: str, retry_after: float = 0.0, progress: bool = False) -> None:
        super().__init__(reason)
        self.retry_after, self.progress = retry_after, progress


class Refused(Exception):
    """A wrong answer of a server; a few more tries are made."""


class Denied(Refused):
    """A file that is missing or not for this user; before there is any training, fewer tries are made."""


class Unfit(Refused):
    """A row group has a row that the formatter refuses; it is not retried, for reading it again gives the same."""


class Changed(Refused):
    """A file that is another one than at the start of the run."""


class Unreadable(Exception):
    """A file or row group that was given up after several tries."""


class Unreachable(Stalled):
    """The network or the server did not come back in the time that a start may take."""


@dataclass(frozen=True)
class Patience:
    """How long one attempt may take and how attempts follow each other."""

    attempt_seconds: float = 60.0
    """Longest time for a whole answer; a slow trickle ends there too."""
    first_pause_seconds: float = 1.0
    """Pause after the first failure; doubled after every other."""
    longest_pause_seconds: float = 60.0
    start_seconds: float = 1800.0
    """Longest time without an answer before there is any training; then the start fails."""
    refusals: int = 8
    """Wrong answers in a row after which something is given up. Transient failures have no limit here."""

    @property
    def socket_seconds(self) -> float:
        """Longest time without a single byte."""
        return min(10.0, self.attempt_seconds)


class Attempts:
    """The history of one thing that is tried until it succeeds: pauses, limits, a log of stalls.

    Args:
        limit_seconds: without an answer; infinite once there is training.
    """

    def __init__(self, what: str, patience: Patience, limit_seconds: float = math.inf) -> None:
        self._what, self._patience, self._limit = what, patience, limit_seconds
        self._started = self._heard = time.monotonic()
        self._count = self._in_a_row = self._refusals = 0

    def failed(self, error: Transient | Refused) -> float:
        """Seconds until the next attempt.

        Raises:
            Unreadable: the server keeps answering wrongly.
            ConfigError: it keeps giving another file.
            Unreachable: it does not answer within the limit.
        """
        now = time.monotonic()
        self._count += 1
        self._refusals = self._refusals + 1 if isinstance(error, Refused) else 0
        self._in_a_row += 1
        if isinstance(error, Transient) and error.progress:
            self._in_a_row, self._heard = 1, now
        if self._refusals >= self._most_refusals(error):
            raise self._final(error) from error
        if now - self._heard > self._limit:
            raise Unreachable(
                f"{self._what}: {error}; nothing of use for {now - self._heard:.0f} s, {self._count} attempts"
            ) from error
        pause = max(getattr(error, "retry_after", 0.0), _pause(self._in_a_row, self._patience))
        if self._count == 1 or self._count % 10 == 0:
            limit = f"; the start waits up to {self._limit:.0f} s for it" if self.starting else ""
            logger.warning(
                f"{self._what}: {error}; attempt {self._count}, {now - self._started:.0f} s so far; "
                f"again in {pause:.1f} s{limit}"
            )
        return pause

    @property
    def starting(self) -> bool:
        """Whether there is no training yet."""
        return self._limit < math.inf

    def succeeded(self) -> None:
        """Log how long it took, where the first attempt failed."""
        if self._count:
            stall = time.monotonic() - self._started
            logger.warning(f"{self._what}: read after a stall of {stall:.1f} s and {self._count} failed attempts")

    def _most_refusals(self, error: Transient | Refused) -> int:
        if isinstance(error, Unfit):
            return _UNFIT_TRIES
        return _DENIALS_AT_START if isinstance(error, Denied) and self.starting else self._patience.refusals

    def _final(self, error: Transient | Refused) -> Exception:
        reason = f"{self._what}: {error} ({self._refusals} times)"
        if not isinstance(error, Changed):
            return Unreadable(reason)
        return ConfigError(
            f"{reason}; restore it, or train on what is there now: remove data/units.json from the run folder and set "
            'checkpoint.exclude_from_loading = ["data"]'
        )


def persist(action: Callable[[], T], attempts: Attempts, stop: threading.Event) -> T:
    """Call the action until it succeeds, and return its value.

    Raises:
        Unreadable, Unreachable, ConfigError: see `Attempts.failed`.
        Stopped: `stop` was set meanwhile.
        Preempted: this process was asked to stop before there was any training; later the loader sees to that.
    """
    while True:
        try:
            value = action()
        except (Transient, Refused) as error:
            if stop.is_set():  # which may be why it failed
                raise Stopped from None
            pause(attempts.failed(error), attempts, stop)
        else:
            attempts.succeeded()
            return value


def pause(seconds: float, attempts: Attempts, stop: threading.Event) -> None:
    """Wait, unless `stop` is set or the process is asked to stop; raises as `persist` does."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if stop.wait(min(left, _POLL_SECONDS)):
            raise Stopped
        if attempts.starting and stop_requested():
            raise Preempted


def _pause(attempts: int, patience: Patience) -> float:
    """Seconds to wait: 1, 2, 4, ... 60, each shortened at random by up to half, to spread the ranks."""
    longest = min(patience.longest_pause_seconds, patience.first_pause_seconds * 2.0 ** min(attempts - 1, 30))
    return longest * random.Random().uniform(0.5, 1.0)
