"""Writes that failed: kept, and tried again with each later one. Imported where a disk fails."""

import logging
from collections import deque
from collections.abc import Callable

logger = logging.getLogger("titan_pt")

KEPT_BYTES = 64 << 20
"""Content of failed writes that one record keeps in memory."""


class KeptWrites:
    """Writes of one kind from the first that failed on, each done once and in their order.

    Where one fails, it and those after it are kept, and tried again with the next one and at the end. Of more than
    KEPT_BYTES the oldest are lost, which is told.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._kept: deque[tuple[str, int, Callable[[], None]]] = deque()
        self._lost: list[str] = []
        self.fails = False

    def write(self, what: str, size: int, action: Callable[[], None]) -> None:
        """Do a write behind the kept ones.

        Args:
            what: its name, for messages.
            size: bytes that it keeps in memory; 0 is never given up.
            action: the write; where it raises an OSError it leaves nothing that a second call does not replace.
        """
        self._kept.append((what, size, action))
        while sum(size for _, size, _ in self._kept) > KEPT_BYTES:
            oldest = next(entry for entry in self._kept if entry[1])
            self._kept.remove(oldest)
            self._lost.append(oldest[0])
        self.retry()

    def retry(self) -> None:
        """Do the kept writes, up to the first that fails."""
        before = len(self._kept)
        try:
            while self._kept:
                self._kept[0][2]()
                self._kept.popleft()
        except OSError as error:
            if not self.fails:
                what = self._kept[0][0]
                logger.error(f"{what} could not be written: {error}; it is kept and tried again; training goes on")
            self.fails = True
            return
        if self.fails:
            logger.warning(f"{self._name}: written again, with {before - 1} that were kept{self._told()}")
        self.fails, self._lost = False, []

    def close(self) -> None:
        """Try a last time; what cannot be written is lost, and told."""
        self.retry()
        self._lost += [what for what, _, _ in self._kept]
        self._kept.clear()
        if self._lost:
            logger.error(f"{self._name}: could not be written up to the end{self._told()}")

    def _told(self) -> str:
        count = len(self._lost)
        span = self._lost if count < 3 else [self._lost[0], f"... ({count} in all) ...", self._lost[-1]]
        return f"; lost: {', '.join(span)}" if count else ""
