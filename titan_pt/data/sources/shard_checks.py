"""Checksums of token shards: of whole files, and of blocks, so that a large folder is checked as it is read."""

import hashlib
import io
import zlib
from array import array
from pathlib import Path
from typing import Any

import numpy as np

from titan_pt.config.errors import ConfigError

BLOCK_SUMS = "sums.npy"
_BLOCK_BITS = 16  # as much as the system reads ahead anyway


class SummingFile(io.RawIOBase):
    """A file that is written from its beginning to its end, with the hash of the whole and the sums of its blocks."""

    def __init__(self, path: Path) -> None:
        self._file, self._hash, self._block = path.open("wb"), hashlib.sha256(), bytearray()
        self.sums = array("I")
        """CRC-32 of each block."""

    def write(self, content: Any) -> int:
        self._file.write(content)
        self._hash.update(content)
        self._block += content
        size, at = 1 << _BLOCK_BITS, 0
        while len(self._block) - at >= size:
            self.sums.append(zlib.crc32(memoryview(self._block)[at : at + size]))
            at += size
        self._block = self._block[at:]
        return len(content)

    def finish(self) -> str:
        """Flush everything and return the hash of the file, as `content_hash` gives it."""
        if self._block:
            self.sums.append(zlib.crc32(self._block))
        self._file.flush()
        return self._hash.hexdigest()[:32]

    def fileno(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        self._file.close()
        super().close()


class BlockChecks:
    """Checks each block of a memory-mapped file where it is read for the first time."""

    def __init__(self, path: Path, sums: np.ndarray) -> None:
        self._path, self._sums, self._seen = path, sums, bytearray(len(sums))
        self._content = np.memmap(path, dtype=np.uint8, mode="r")

    def check(self, start: int, end: int) -> None:
        """Check the blocks of the bytes from `start` up to `end`.

        Raises:
            ConfigError: they are damaged.
        """
        for block in range(start >> _BLOCK_BITS, (end - 1 >> _BLOCK_BITS) + 1):
            if not self._seen[block]:
                first, last = block << _BLOCK_BITS, block + 1 << _BLOCK_BITS
                if zlib.crc32(self._content[first:last].data) != self._sums[block]:
                    raise damaged(self._path, f"bytes {first:,} to {min(last, len(self._content)):,}")
                self._seen[block] = 1


def damaged(path: Path, what: str) -> ConfigError:
    """The error of a file that is not what `titan_pt.tools.prepare` wrote."""
    return ConfigError(f"{path}: damaged: {what}; restore it, or remove {path.parent} and prepare it anew")


def largest_id(path: str, dtype: str) -> int:
    """The largest token of a file of tokens; -1 of an empty one."""
    tokens = np.memmap(path, dtype=dtype, mode="r")
    return max((int(tokens[at : at + (1 << 24)].max()) for at in range(0, len(tokens), 1 << 24)), default=-1)


def are_ascending(path: str) -> bool:
    """Whether an array of ends does not begin below 0 and nowhere falls."""
    ends = np.load(path, mmap_mode="r")
    pieces = (ends[max(0, at - 1) : at + (1 << 22)] for at in range(0, len(ends), 1 << 22))
    return (len(ends) == 0 or bool(ends[0] >= 0)) and all(bool((np.diff(piece) >= 0).all()) for piece in pieces)
