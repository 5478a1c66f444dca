"""Bytes over HTTP, and the one layer that retries: time-outs, dropped connections, 429, 5xx, short answers."""

import logging
import math
import random
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import requests

logger = logging.getLogger("titan_pt")

T = TypeVar("T")

_PIECE_BYTES = 1 << 16
_RETRIED_STATUS = (408, 425, 429)  # and 5xx


class Transient(Exception):
    """It may well work in a moment: the network or the server, not what was asked for."""

    def __init__(self, reason: str, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class Refused(Exception):
    """The server answered, and what it said or sent is wrong; a few more tries are made."""


class Unreadable(Exception):
    """Given up after several tries."""


class Unreachable(Exception):
    """The network or the server did not come back in the time that a start may take."""


class Stopped(Exception):
    """The reader was closed while it waited."""


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


class Http:
    """Reads ranges of files. One attempt each; `persist` makes it many. Safe with several threads."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._local = threading.local()

    def read(self, url: str, start: int, length: int, size: int) -> bytes:
        """`length` bytes of a file of `size` bytes.

        Raises:
            Transient, Refused.
        """
        body, total = self._get(url, f"bytes={start}-{start + length - 1}")
        if total is not None and total != size:
            raise Refused(f"has {total:,} bytes now, not the {size:,} of the listing")
        if len(body) != length:
            raise Refused(f"{len(body):,} of {length:,} bytes came")
        return body

    def read_end(self, url: str, length: int) -> tuple[bytes, int]:
        """The last bytes of a file, at most `length`, and its size.

        Raises:
            Transient, Refused.
        """
        body, total = self._get(url, f"bytes=-{length}")
        if total is None:
            raise Refused("the server does not tell the size of the file")
        if len(body) != min(length, total):
            raise Refused(f"{len(body):,} of {min(length, total):,} bytes came")
        return body, total

    def _get(self, url: str, span: str) -> tuple[bytes, int | None]:
        deadline = time.monotonic() + self._patience.attempt_seconds
        headers = {**_hub_headers(url), "Range": span, "Accept-Encoding": "identity"}
        body = bytearray()
        try:
            with self._session().get(
                url, headers=headers, stream=True, timeout=self._patience.socket_seconds
            ) as response:
                _check_status(response)
                for piece in response.iter_content(_PIECE_BYTES):
                    body += piece
                    if time.monotonic() > deadline:
                        raise Transient(f"no whole answer within {self._patience.attempt_seconds:g} s")
        except requests.RequestException as error:
            raise Transient(f"{type(error).__name__}: {error}") from error
        match = re.fullmatch(r"bytes \d+-\d+/(\d+)", response.headers.get("Content-Range", ""))
        return bytes(body), int(match[1]) if match else None

    def _session(self) -> requests.Session:
        if not hasattr(self._local, "session"):  # sessions are not safe with several threads
            self._local.session = requests.Session()
        session: requests.Session = self._local.session
        return session


class Attempts:
    """The history of one thing that is tried until it succeeds: pauses, limits, a log of stalls."""

    def __init__(self, what: str, patience: Patience, limit_seconds: float = math.inf) -> None:
        self._what, self._patience, self._limit = what, patience, limit_seconds
        self._started = time.monotonic()
        self._count = self._refusals = 0

    def failed(self, error: Transient | Refused) -> float:
        """Seconds until the next attempt.

        Raises:
            Unreadable: the server keeps answering wrongly.
            Unreachable: it does not answer within the limit.
        """
        self._count += 1
        self._refusals = self._refusals + 1 if isinstance(error, Refused) else 0
        waited = time.monotonic() - self._started
        if self._refusals >= self._patience.refusals:
            raise Unreadable(f"{self._what}: {error} ({self._refusals} times)") from error
        if waited > self._limit:
            raise Unreachable(f"{self._what}: {error}; no answer for {waited:.0f} s, {self._count} attempts") from error
        pause = max(getattr(error, "retry_after", 0.0), _pause(self._count, self._patience))
        if self._count == 1 or self._count % 10 == 0:
            logger.warning(
                f"{self._what}: {error}; attempt {self._count}, {waited:.0f} s so far; again in {pause:.1f} s"
            )
        return pause

    def succeeded(self) -> None:
        """Say how long it took, where it did not work at once."""
        if self._count:
            stall = time.monotonic() - self._started
            logger.warning(f"{self._what}: read after a stall of {stall:.1f} s and {self._count} failed attempts")


def persist(action: Callable[[], T], attempts: Attempts, stop: threading.Event) -> T:
    """The action's value, after as many attempts as it takes.

    Raises:
        Unreadable, Unreachable: see `Attempts.failed`.
        Stopped: `stop` was set meanwhile.
    """
    while True:
        try:
            value = action()
        except (Transient, Refused) as error:
            if stop.wait(attempts.failed(error)):
                raise Stopped from None
        else:
            attempts.succeeded()
            return value


def _pause(attempts: int, patience: Patience) -> float:
    """1, 2, 4, ... 60 s, each between half and the whole of it, so that ranks do not come back all at once."""
    longest = min(patience.longest_pause_seconds, patience.first_pause_seconds * 2.0 ** min(attempts - 1, 30))
    return longest * random.Random().uniform(0.5, 1.0)


def _check_status(response: requests.Response) -> None:
    status = response.status_code
    if status in _RETRIED_STATUS or status >= 500:
        raise Transient(f"HTTP {status}", _retry_after(response.headers.get("Retry-After", "")))
    if status == 200:
        raise Refused("the server sends whole files where a part is asked for")
    if status != 206:
        raise Refused(f"HTTP {status}")


def _retry_after(text: str) -> float:
    """Seconds; a date is not read, the own backoff does then."""
    return min(300.0, float(text)) if text.isdigit() else 0.0


def _hub_headers(url: str) -> dict[str, str]:
    """The user's token, for the hub alone."""
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers

    return build_hf_headers(library_name="titan_pt") if url.startswith(f"{constants.ENDPOINT}/") else {}
