"""Files too large to be hashed at the start: known by their states until they are hashed, beside the training."""

import contextlib
import functools
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence

from titan_pt.config.errors import ConfigError
from titan_pt.data.sources.identity import (
    HASHED_AT_START_BYTES,
    Contents,
    KnownFiles,
    content_hash,
    file_state,
    settled_state,
)
from titan_pt.run.exit_codes import Preempted

logger = logging.getLogger("titan_pt")

_BYTES_PER_SECOND = 200e6  # the training reads from the same disk


class LaterHashes:
    """Contents of a source's files: hashes, as far as they are known by now, and states.

    The state is a further line of the hash of each local file that a start without the hash would not read whole.

    Args:
        contents: as the start knows them.
    """

    def __init__(self, contents: Contents, cache_dir: str | None) -> None:
        self._contents, self._cache_dir = contents, cache_dir
        self._found: dict[str, str] = {}
        self._thread: threading.Thread | None = None
        states = {path: settled_state(path)[0] for path, _ in contents if os.path.isfile(path)}
        large = sum(state[1] for state in states.values()) > HASHED_AT_START_BYTES
        self._states = {
            path: _told(states[path]) for path, known in contents if path in states and (large or not known)
        }

    def __iter__(self) -> Iterator[tuple[str, str]]:
        for path, known in self._contents:
            yield path, "\n".join(filter(None, (known or self._found.get(path), self._states.get(path))))

    def start(self) -> None:
        """Hash the local files whose hash is not known on another thread, one by one."""
        paths = [path for path, known in self._contents if path in self._states and not known]
        if paths and self._thread is None:
            self._thread = threading.Thread(target=self._run, args=[paths], name="later hashes", daemon=True)
            self._thread.start()

    def _run(self, paths: Sequence[str]) -> None:
        known = KnownFiles(self._cache_dir)  # of its own: other threads have others
        with contextlib.suppress(Preempted):
            for path in paths:
                try:
                    (found,) = known.facts([path], "content", _slow_hash)
                    if _told(file_state(path)) != self._states[path]:
                        raise ConfigError("it was touched or changed since the start")
                    # "content" is of the present state, that of a corrected file too; this is of the start, and stays.
                    known.facts([path], self._states[path], functools.partial(_same, found))
                except (OSError, ConfigError) as error:  # the training reads it too, and fails where it cannot
                    logger.warning(f"{path} cannot be hashed: {error}; a resume on another state of it is refused")
                    continue
                self._found[path] = found


def _told(state: Sequence[int]) -> str:
    """A state as checkpoints keep it: without the inode, which differs between machines of one network disk."""
    return f"state {' '.join(str(value) for value in state[1:])}"


def _slow_hash(path: str) -> str:
    return content_hash(path, lambda count: time.sleep(count / _BYTES_PER_SECOND))


def _same(found: str, _path: str) -> str:
    return found
