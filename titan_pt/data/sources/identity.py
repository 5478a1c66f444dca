"""What files hold: hashes of their contents, which are computed once and remembered for as long as a file is the same.

A file is the same while its resolved path, inode, size, and times of the last change of content and of state are. The
last one, ctime, is the kernel's alone: `cp -p`, `rsync -t` and `touch` put the other back, not this one. Where anything
differs the content is hashed again; nothing is told from a name, a size or a part of a file.
"""

import contextlib
import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from titan_pt.config.errors import ConfigError
from titan_pt.run.exit_codes import Preempted
from titan_pt.run.files import parse_json
from titan_pt.run.signals import stop_requested

logger = logging.getLogger("titan_pt")

HASHED_AT_START_BYTES = 2 << 30
"""Files that are read in parts are hashed whole at the start up to this size, all of a source together."""
_BLOCK_BYTES = 1 << 20
_THREADS = 8
_SAVE_SECONDS = 30.0
# Two changes within one tick of a file system's clock have the same time. Some clocks tick in whole seconds.
_TICK_NS, _COARSE_TICK_NS = 20_000_000, 2_000_000_000

FileState = tuple[int, int, int, int]
"""Inode, size, mtime and ctime in nanoseconds."""
Contents = list[tuple[str, str]]
"""(file, hash of its content) of a source's files, in order; an empty hash where it was too large for the start."""


def same_content(one: str, other: str) -> bool:
    """Whether two hashes may be of the same content: one is unknown, or a line of both is equal.

    Several lines are what a server says of a file, ETag and Last-Modified; one of them may differ from machine to
    machine that answers for it.
    """
    return not one or not other or bool(set(one.split("\n")) & set(other.split("\n")))


def cache_folder(cache_dir: str | None) -> Path:
    """The folder of what is kept between runs: data.cache_dir, else titan_pt's in the user's cache."""
    return Path(cache_dir or os.path.expanduser(f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/titan_pt"))


def file_state(path: str) -> FileState:
    """What the file system says of a file, links followed."""
    status = os.stat(path)
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def settled_state(path: str) -> tuple[FileState, bool]:
    """A file's state, and whether any later change is certain to show in it; waits a moment for a file just written."""
    state = file_state(path)
    tick = _TICK_NS if state[3] % 1_000_000_000 else _COARSE_TICK_NS
    left = state[3] + tick - time.time_ns()
    if 0 <= left <= tick:  # more: the clocks of this machine and of the disk differ
        time.sleep(left / 1e9)
    again = file_state(path)
    return again, again == state and left <= tick


def content_hash(path: str, read: Callable[[int], object] = int) -> str:
    """Hash of a whole file.

    Args:
        read: is told the bytes of each block that was read.

    Raises:
        Preempted: this process was asked to stop.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            read(len(block))
            if stop_requested():
                raise Preempted
    return digest.hexdigest()[:32]


@dataclass
class _Folder:
    """What is known of the files of one folder, by name and kind: [state, value]."""

    path: Path
    files: dict[str, dict[str, Any]]
    changed: bool = False


class KnownFiles:
    """Facts about the contents of files, kept in the cache folder; where it cannot be written they cost time.

    One record for each folder of files, so that a start reads few; it is replaced as a whole, and the loss of another
    process's last entries only means that it finds them out again.
    """

    def __init__(self, cache_dir: str | None) -> None:
        self.cache_dir = cache_dir
        self.folder = cache_folder(cache_dir) / "known_files"
        self._folders: dict[str, _Folder] = {}
        self._parents: dict[str, str] = {}
        self._warned = False

    def facts(self, paths: Sequence[str], kind: str, find: Callable[[str], Any]) -> list[Any]:
        """A JSON value of each file: the remembered one, or what `find` makes of its content.

        Raises:
            ConfigError: a file cannot be read, or is written to meanwhile.
        """
        found = self.recall(paths, kind)
        missing = [index for index, value in enumerate(found) if value is None]
        if not missing:
            return found
        saved = time.monotonic()
        with ThreadPoolExecutor(_THREADS) as pool:
            futures = [pool.submit(self._find, paths[index], kind, find) for index in missing]
            try:
                for index, future in zip(missing, futures, strict=True):
                    found[index] = future.result()
                    if time.monotonic() - saved > _SAVE_SECONDS:
                        self._save()
                        saved = time.monotonic()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
                self._save()
        return found

    def recall(self, paths: Sequence[str], kind: str, *, of_any_state: bool = False) -> list[Any]:
        """The remembered value of each file, of the state that it has now unless of any; None where there is none."""
        known = [(path, self._record(self._resolved(path)).get(kind)) for path in paths]
        return [k[1] if k and (of_any_state or tuple(k[0]) == file_state(path)) else None for path, k in known]

    def hashes(self, paths: Sequence[str], limit_bytes: float = float("inf")) -> list[str]:
        """Hash of each file's content; empty for those that are not known yet and are larger than this together."""
        known = self.recall(paths, "content")
        left = sum(os.path.getsize(path) for path, value in zip(paths, known, strict=True) if value is None)
        if left > limit_bytes or None not in known:
            return [value or "" for value in known]
        if left < 1 << 28:  # a moment
            return self.facts(paths, "content", content_hash)
        from titan_pt.run.progress import Progress

        with Progress("Hashing files once, to know them again", "bytes", left) as progress:
            return self.facts(paths, "content", lambda path: content_hash(path, progress.add))

    def _find(self, path: str, kind: str, find: Callable[[str], Any]) -> Any:
        try:
            before, settled = settled_state(path)
            value = find(path)
            changed = file_state(path) != before
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
        if changed:
            raise ConfigError(f"{path}: it was written to while it was read; start again when it is whole")
        if settled:
            real = self._resolved(path)
            self._record(real)[kind] = [before, value]
            self._folders[os.path.dirname(real)].changed = True
        return value

    def _resolved(self, path: str) -> str:
        """A path without links. Of thousands of files in a folder the folder is resolved once."""
        parent, name = os.path.split(path)
        if parent not in self._parents:
            self._parents[parent] = os.path.realpath(parent)
        found = os.path.join(self._parents[parent], name)
        return os.path.realpath(found) if os.path.islink(found) else found

    def _record(self, path: str) -> dict[str, Any]:
        """Facts of a file with the state that each was found in, by kind."""
        parent, name = os.path.split(path)
        if parent not in self._folders:
            place = self.folder / f"{hashlib.sha256(parent.encode(errors='surrogateescape')).hexdigest()[:32]}.json"
            self._folders[parent] = _Folder(place, _read(place))
        record: dict[str, Any] = self._folders[parent].files.setdefault(name, {})
        return record

    def _save(self) -> None:
        for known in [known for known in self._folders.values() if known.changed]:
            known.changed = False
            others = _read(known.path)  # of another process, since this one has read it
            files = others | {
                name: others.get(name, {}) | record for name, record in list(known.files.items()) if record
            }
            try:
                _write(known.path, json.dumps(files))
            except OSError as error:
                if not self._warned:
                    logger.warning(
                        f"{self.folder}: {error}; hashes of files are not kept, so each start makes them anew"
                    )
                self._warned = True
                return


def _read(path: Path) -> dict[str, Any]:
    """What `_write` wrote; nothing where it is missing or damaged."""
    with contextlib.suppress(OSError, ValueError):
        checksum, _, text = path.read_text(encoding="ascii").partition("\n")
        if checksum == hashlib.sha256(text.encode()).hexdigest():
            found: dict[str, Any] = parse_json(text)
            return found
    return {}


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False, encoding="ascii") as file:
        file.write(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")
    try:
        os.replace(file.name, path)
    except OSError:
        os.unlink(file.name)
        raise
