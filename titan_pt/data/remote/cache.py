"""A bounded folder of contents that were read once: least recently used goes first, safe with several processes."""

import contextlib
import fcntl
import hashlib
import logging
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa

from titan_pt.data.sources.documents import Stopped

logger = logging.getLogger("titan_pt")

_LOCK_POLL_SECONDS = 0.1
_SUM_BYTES = 64  # a checksum of what follows; so many that what follows stays aligned in memory


class SpillCache:
    """A folder of files by key, bounded in size. A file that is open stays readable when it is removed.

    Args:
        folder: made where it is missing.
        limit_bytes: of all files together; a little more for a moment.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder, self._limit = folder, limit_bytes
        self._unchecked = limit_bytes  # of unknown size until it was looked at
        self._warned = False

    def content(self, key: str, make: Callable[[], bytes], stop: threading.Event) -> pa.Buffer:
        """The content of a key, memory-mapped; made by the first process that asks for it.

        The others wait for that one. Without a disk to write to it is made each time, in memory.

        Raises:
            Stopped: `stop` was set while another one made it.
        """
        made: list[bytes] = []

        def make_once() -> bytes:
            if not made:
                made.append(make())
            return made[0]

        for _ in range(3):
            try:
                content = _checked(self._path(key, make_once, stop))
                if content is not None:
                    return content
                logger.warning(f"{self._file(key)} is damaged; it is made anew")
                self.drop(key)
            except FileNotFoundError:
                continue  # another process made room in this very moment
            except OSError as error:
                if not self._warned:
                    self._warned = True
                    logger.warning(f"the cache {self._folder} cannot be used: {error}; going on without")
                break
        return pa.py_buffer(make_once())

    def drop(self, key: str) -> None:
        """Forget a file that turned out to be damaged."""
        with contextlib.suppress(OSError):
            self._file(key).unlink()

    def _file(self, key: str) -> Path:
        return self._folder / key[:2] / key

    def _path(self, key: str, make: Callable[[], bytes], stop: threading.Event) -> Path:
        path = self._file(key)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(path.with_suffix(".lock"), stop):
                if not path.exists():
                    self._write(path, make())
        with contextlib.suppress(FileNotFoundError, PermissionError):
            os.utime(path)
        return path

    def _write(self, path: Path, content: bytes) -> None:
        temporary = path.with_suffix(f".{uuid.uuid4().hex[:8]}.tmp")
        try:
            with temporary.open("wb") as file:
                file.write(_sum(content))
                file.write(content)
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
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


def _sum(content: bytes | pa.Buffer) -> bytes:
    return hashlib.blake2b(content, digest_size=_SUM_BYTES).digest()


def _checked(path: Path) -> pa.Buffer | None:
    """Content of a file behind its checksum; None where it is damaged: changed, or cut when the machine went down."""
    if path.stat().st_size < _SUM_BYTES:
        return None
    whole = pa.memory_map(str(path)).read_buffer()
    content = whole.slice(_SUM_BYTES)
    return content if whole.slice(0, _SUM_BYTES).to_pybytes() == _sum(content) else None


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
