"""log.txt of the run folder: all that this process prints on stderr, over all starts. No failing disk ends the run."""

import functools
import os
import sys
import threading
from collections import deque
from pathlib import Path

from titan_pt.run.outgoing import Outgoing
from titan_pt.run.records import Record

LOG_FILE = "log.txt"
_kept: list["LogFile"] = []  # known here too: a plugin may put a stream of its own around stderr


class LogFile:
    """Keeps what is printed until the folder is known, then appends it; each rank appends its own lines."""

    def __init__(self) -> None:
        self.path: Path | None = None
        self._record, self._lock = Record(LOG_FILE), threading.RLock()
        self._new, self._writes = deque[str](), False

    def add(self, text: str) -> None:
        """Take what was printed."""
        self._new.append(text)
        with self._lock:
            if self.path is None or self._writes:  # what the write below says itself comes after it
                return
            self._writes = True
            while self._new:  # what is said meanwhile too
                left = ["".join(self._new.popleft() for _ in range(len(self._new))).encode("utf-8", "replace")]
                self._record.write("what was printed", len(left[0]), functools.partial(_append, self.path, left))
                if self._record.fails:
                    break
            self._writes = False


def keep_log() -> None:
    """Begin to keep what is printed on stderr, unless something else has taken the stream's place."""
    _kept.clear()
    if isinstance(sys.stderr, Outgoing):
        _kept.append(LogFile())
        sys.stderr.log = _kept[0]


def open_log(folder: Path) -> None:
    """Append what was kept, and what comes, to the log of this folder."""
    for log in _kept:
        log.path = folder / LOG_FILE
        log.add("")


def _append(path: Path, left: list[bytes]) -> None:
    """Append what is left, which is less after a write that failed half way."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        while left[0]:
            left[0] = left[0][os.write(file.fileno(), left[0]) :]
