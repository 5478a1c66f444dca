"""What a run writes beside its checkpoints. No failing disk ends the run, and as few records as can be are lost."""

import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from titan_pt.run.kept_writes import KeptWrites

logger = logging.getLogger("titan_pt")


class Record:
    """Writes of one kind, each done once and in their order, whatever the disk does (`kept_writes.py`)."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._kept: KeptWrites | None = None

    @property
    def fails(self) -> bool:
        return self._kept is not None and self._kept.fails

    def write(self, what: str, size: int, action: Callable[[], None]) -> None:
        """Do a write behind the kept ones.

        Args:
            what: its name, for messages.
            size: bytes that it keeps in memory; 0 is never given up.
            action: the write; where it raises an OSError it leaves nothing that a second call does not replace.
        """
        if self._kept is None:
            try:
                action()
                return
            except OSError:
                from titan_pt.run.kept_writes import KeptWrites

                self._kept = KeptWrites(self._name)
        self._kept.write(what, size, action)

    def close(self) -> None:
        """Try a last time what is kept; what cannot be written is lost, and told."""
        if self._kept:
            self._kept.close()


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
