"""A bounded folder of what was read once: least recently used goes first, safe with several processes."""

import contextlib
import fcntl
import logging
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from titan_pt.data.fetch import Stopped

logger = logging.getLogger("titan_pt")

_LOCK_POLL_SECONDS = 0.1


class SpillCache:
    """Files by key. What is open stays readable when it is removed to make room.

    Args:
        folder: made where it is missing.
        limit_bytes: of all files together; a little more for a moment.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder, self._limit = folder, limit_bytes
        self._unchecked = limit_bytes  # of unknown size until it was looked at

    def path(self, key: str, make: Callable[[], bytes], stop: threading.Event) -> Path:
        """The file of a key, made by the first who asks for it, in whatever process; the others wait for that one.

        It may be removed at any time: open it at once, and ask again where it is gone.

        Raises:
            Stopped: `stop` was set while another one made it.
            OSError: the disk is full or read-only.
        """
        path = self._folder / key[:2] / key
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(path.with_suffix(".lock"), stop):
                if not path.exists():
                    self._write(path, make())
        with contextlib.suppress(FileNotFoundError):
            os.utime(path)
        return path

    def drop(self, key: str) -> None:
        """Forget a file that turned out to be damaged."""
        (self._folder / key[:2] / key).unlink(missing_ok=True)

    def _write(self, path: Path, content: bytes) -> None:
        temporary = path.with_suffix(f".{uuid.uuid4().hex[:8]}.tmp")
        try:
            temporary.write_bytes(content)
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        self._unchecked += len(content)
        if self._unchecked >= self._limit / 20:  # looking at thousands of files for every one is too much
            self._unchecked = 0
            self._make_room(path)

    def _make_room(self, newest: Path) -> None:
        files = []
        for path in self._folder.glob("??/*"):
            with contextlib.suppress(FileNotFoundError):  # another process makes room too
                status = path.stat()
                files.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self._limit:
                return
            if path != newest and path.suffix != ".lock":
                path.unlink(missing_ok=True)
                total -= size


@contextlib.contextmanager
def _locked(path: Path, stop: threading.Event) -> Iterator[None]:
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if stop.wait(_LOCK_POLL_SECONDS):
                    raise Stopped from None
        try:
            yield
        finally:
            # Who waits on the removed file and who makes it anew may both go on: they look for the content first, and
            # where there is none both write it, which is only double work.
            path.unlink(missing_ok=True)
