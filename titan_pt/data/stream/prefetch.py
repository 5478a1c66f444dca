"""The next item of an iterator, with a time limit, so that the caller can do something else while it waits."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from titan_pt.data.sources.documents import Stopped

logger = logging.getLogger("titan_pt")

T = TypeVar("T")

_JOIN_SECONDS = 0.2
_ABANDON_SECONDS = 15.0


class End:
    """Mark that the iterator has no more items."""


class TimedPrefetcher(Generic[T]):
    """Thread that takes the items of an iterator, each when it is asked for."""

    def __init__(self, items: Iterator[T]) -> None:
        self._items = items
        self._wanted = threading.Semaphore(0)
        self._found: queue.SimpleQueue[T | End] = queue.SimpleQueue()
        self._asked = self._closing = False
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)
        self._thread.start()

    def poll(self, seconds: float) -> T | End | None:
        """The next item, or None where it takes longer: ask again."""
        if not self._asked:
            self._asked = True
            self._wanted.release()
        try:
            item = self._found.get(timeout=seconds)
        except queue.Empty:
            return None
        self._asked = False
        return item

    def close(self, interrupt: Callable[[], None]) -> None:
        """End the thread; what the iterator still has is thrown away.

        Args:
            interrupt: ends what the iterator waits for; called until it does.
        """
        self._closing = True
        self._wanted.release()
        deadline = time.monotonic() + _ABANDON_SECONDS
        while self._thread.is_alive():
            interrupt()
            self._thread.join(_JOIN_SECONDS)
            if time.monotonic() > deadline:
                logger.warning("A data source does not answer; its thread is left behind")
                return

    def _run(self) -> None:
        self._wanted.acquire()
        for item in self._items:
            if not self._closing:
                self._found.put(item)
                self._wanted.acquire()
        while not self._closing:
            self._found.put(End())
            self._wanted.acquire()


def with_errors(items: Iterator[T]) -> Iterator[T | BaseException]:
    """Give an error as the last item: torchdata's threads would change it, or swallow it and wait for ever."""
    while True:
        try:
            item = next(items)
        except (StopIteration, Stopped):
            return
        except BaseException as error:
            yield error
            return
        yield item
