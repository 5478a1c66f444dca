"""What a run writes beside its checkpoints. No failing disk ends the run, and as few records as can be are lost."""

import contextlib
import logging
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger("titan_pt")

KEPT_BYTES = 64 << 20
"""Content of failed writes that one record keeps in memory."""


class Record:
    """Writes of one kind, each done once and in their order.

    Where one fails, it and those after it are kept, and tried again with the next one and at the end. Of more than
    KEPT_BYTES the oldest are lost, which is told.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._kept: deque[tuple[str, int, Callable[[], None]]] = deque()
        self._lost: list[str] = []
        self._fails = False

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
            if not self._fails:
                what = self._kept[0][0]
                logger.error(f"{what} could not be written: {error}; it is kept and tried again; training goes on")
            self._fails = True
            return
        if self._fails:
            logger.warning(f"{self._name}: written again, with {before - 1} that were kept{self._told()}")
        self._fails, self._lost = False, []

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


class AppendedFile:
    """A file that grows by whole entries: what a failed write left of one is cut off before the next.

    It is opened anew for each entry, so that it comes back with its folder, its disk or a free descriptor.

    Args:
        header: begins a file that is empty.
        syncs: an entry is on the disk when it is written.
    """

    def __init__(self, path: Path, header: bytes = b"", *, syncs: bool = True) -> None:
        self.path, self._header, self._syncs = path, header, syncs
        self.size: int | None = None
        """Bytes of whole entries; None: the file is whole as it is."""

    def append(self, content: bytes) -> None:
        """Write an entry behind the others.

        Raises:
            OSError: it is not in the file, or will be cut off.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            size = os.fstat(file).st_size
            if size < (self.size or 0):
                logger.warning(f"{self.path} was removed or cut off by another; it goes on from here")
            self.size = size if self.size is None else min(size, self.size)
            os.truncate(file, self.size)
            left = content = content if self.size else self._header + content
            os.lseek(file, 0, os.SEEK_END)
            while left:
                left = left[os.write(file, left) :]
            if self._syncs:
                os.fsync(file)
        except OSError:
            with contextlib.suppress(OSError):  # for readers of now
                os.truncate(file, self.size or 0)
            raise
        finally:
            os.close(file)
        self.size += len(content)
