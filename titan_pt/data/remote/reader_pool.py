"""Threads that read row groups ahead, retry, and keep them on disk."""

import logging
import math
import threading
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from titan_pt.data.remote.cache import SpillCache
from titan_pt.data.remote.parquet import ParquetStore
from titan_pt.data.remote.ranges import Http
from titan_pt.data.remote.retry import Attempts, Patience, Refused, Transient, Unreachable, Unreadable, persist
from titan_pt.data.sources.documents import Stopped
from titan_pt.run.exit_codes import Preempted
from titan_pt.run.signals import stop_requested

logger = logging.getLogger("titan_pt")

T = TypeVar("T")

THREADS = 8
_POLL_SECONDS = 0.2
# One bad row group is bad luck; this many without a good one in between mean that something else is wrong.
_MOST_BAD_GROUPS = 16


class ReaderPool:
    """Threads, cache and retries that all sources of a process share.

    Args:
        reads_twice: what no checksum tells apart from wrong bytes is read twice and compared.
    """

    def __init__(self, cache_folder: Path, cache_bytes: int, patience: Patience, *, reads_twice: bool = False) -> None:
        self.patience, self._reads_twice = patience, reads_twice
        self.cache = SpillCache(cache_folder, cache_bytes)
        self._bad_in_a_row = 0
        self._lock = threading.Lock()
        self.limit_seconds = patience.start_seconds
        """Longest wait for one row group; infinite once there is training, which has a limit of its own."""
        self._start()

    def store_for(self, seconds: float) -> ParquetStore:
        """A second store, which gives up after that time."""
        patience = replace(self.patience, start_seconds=seconds)
        return ParquetStore(Http(patience), patience, self.cache, self.stop, reads_twice=self._reads_twice)

    def interrupt(self) -> None:
        """End all waiting with Stopped; reading can go on at once."""
        self.stop.set()
        self.store.interrupt()
        with self._lock:
            if self._pool is not None:
                self._pool.shutdown(wait=False, cancel_futures=True)
            self._start()

    def _start(self) -> None:
        # A new event: what still waits for a dead connection on an old thread must find the old one set.
        self.stop = threading.Event()
        self.store = self.store_for(self.patience.start_seconds)
        self._pool: ThreadPoolExecutor | None = None

    def read_ahead(self, attempt: Callable[[], T], what: str) -> "Future[T]":
        """Call `attempt` on a reader thread until it succeeds. No thread is held between attempts."""
        found: Future[T] = Future()
        attempts, stop = self.attempts(what), self.stop

        def run() -> None:
            if stop.is_set():
                found.cancel()
                return
            try:
                value = attempt()
            except (Transient, Refused) as error:
                if stop.is_set():  # which may be why it failed
                    found.cancel()
                    return
                try:
                    later = threading.Timer(attempts.failed(error), lambda: None if stop.is_set() else self._run(run))
                    later.daemon = True
                    later.start()
                except Exception as final:
                    found.set_exception(self.judged(final))
            except BaseException as error:
                found.set_exception(error)
            else:
                attempts.succeeded()
                self._bad_in_a_row = 0
                found.set_result(value)

        self._run(run)
        return found

    def wait(self, found: "Future[T]", stop: threading.Event) -> T:
        """Wait for the value of `read_ahead`.

        Args:
            stop: of the moment when it was asked for.

        Raises:
            Unreadable, Unreachable, Stopped, ConfigError.
            Preempted: this process was asked to stop before there was any training.
        """
        while not found.done():
            if stop.is_set():
                raise Stopped
            if self.limit_seconds < math.inf and stop_requested():
                raise Preempted
            futures.wait([found], _POLL_SECONDS)
        try:
            return found.result()
        except futures.CancelledError:
            raise Stopped from None

    def read(self, attempt: Callable[[], T], what: str) -> T:
        """Call `attempt` on this thread until it succeeds.

        Raises:
            Unreadable, Unreachable, Stopped.
            ConfigError: it is another file than the one that the run began with.
        """
        try:
            value = persist(attempt, self.attempts(what), self.stop)
        except (Unreadable, Unreachable) as error:
            raise self.judged(error) from error
        self._bad_in_a_row = 0
        return value

    def attempts(self, what: str) -> Attempts:
        """A fresh history of attempts for one row group."""
        return Attempts(what, self.patience, self.limit_seconds)

    def judged(self, error: Exception) -> Exception:
        """The error itself, or a RuntimeError where too many row groups in a row could not be read."""
        if not isinstance(error, Unreadable):
            return error
        self._bad_in_a_row += 1
        if self._bad_in_a_row < _MOST_BAD_GROUPS:
            return error
        return RuntimeError(f"{_MOST_BAD_GROUPS} units in a row cannot be read; the last: {error}")

    def _run(self, action: Callable[[], None]) -> None:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="reader")
            self._pool.submit(action)
