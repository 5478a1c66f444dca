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
    """It may well work in a moment: the network or the server, not what was asked for.

    Args:
        retry_after: seconds that the server asks for.
        progress: some of it came, and the next attempt goes on behind that.
    """

    def __init__(self, reason: str, retry_after: float = 0.0, progress: bool = False) -> None:
        super().__init__(reason)
        self.retry_after, self.progress = retry_after, progress


class Refused(Exception):
    """The server answered, and what it said or sent is wrong; a few more tries are made."""


class Denied(Refused):
    """It is missing or not for this user. Before there is any training that is as good as final."""


class Unfit(Refused):
    """It came whole, and a row of it is not what the formatter wants: another try brings the same."""


class Changed(Refused):
    """It is another file than the one that the run began with."""


class Unreadable(Exception):
    """Given up after several tries."""


class Unreachable(Stalled):
    """The network or the server did not come back in the time that a start may take."""


@dataclass(frozen=True)
class Patience:
    """How long one attempt may take and how attempts follow each other."""

    attempt_seconds: float = 60.0
    """A whole answer; a slow trickle ends there too."""
    first_pause_seconds: float = 1.0
    """Doubled after every failure."""
    longest_pause_seconds: float = 60.0
    start_seconds: float = 1800.0
    """Without an answer before there is any training; then the start fails."""
    refusals: int = 8
    """Wrong answers in a row after which something is given up. Transient failures have no limit here."""

    @property
    def socket_seconds(self) -> float:
        """Without a single byte."""
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
        """Say how long it took, where it did not work at once."""
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
    """The action's value, after as many attempts as it takes.

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
    """Wait so long; see `persist`."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if stop.wait(min(left, _POLL_SECONDS)):
            raise Stopped
        if attempts.starting and stop_requested():
            raise Preempted


def _pause(attempts: int, patience: Patience) -> float:
    """1, 2, 4, ... 60 s, each between half and the whole of it, so that ranks do not come back all at once."""
    longest = min(patience.longest_pause_seconds, patience.first_pause_seconds * 2.0 ** min(attempts - 1, 30))
    return longest * random.Random().uniform(0.5, 1.0)
