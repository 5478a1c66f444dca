"""Token shards: a source tokenised once, then read as memory-mapped numbers. `python -m titan_pt.tools.prepare`."""

import functools
import json
import os
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from titan_pt.components.tokenizer import Tokenizer
from titan_pt.config.errors import ConfigError, shown
from titan_pt.config.schema.job_config import Source
from titan_pt.data.permutation import digest
from titan_pt.data.sources.identity import HASHED_AT_START_BYTES, Contents, KnownFiles
from titan_pt.data.sources.local import SHARD_DESCRIPTION, SHARD_TOKENS
from titan_pt.data.sources.other_documents import TokenDocuments
from titan_pt.data.sources.registry import ListingJson, SourceContext
from titan_pt.data.sources.shard_checks import (
    BLOCK_SUMS,
    BlockChecks,
    SummingFile,
    are_ascending,
    damaged,
    largest_id,
)
from titan_pt.run.files import parse_json, read_bytes, write_atomic

_FORMAT, _DTYPES = 1, ("uint16", "uint32")
_ARRAYS = ("ends", "bytes", "hashes")
_FILES = (SHARD_TOKENS, *(f"{name}.npy" for name in _ARRAYS))


def open_documents(source: Source, context: SourceContext, _listing: ListingJson | None) -> "PreparedDocuments":
    """The token shards of a source's folder."""
    assert source.path is not None
    return PreparedDocuments(Path(source.path), context.known_files)


class PreparedDocuments(TokenDocuments):
    """Token shards of a folder, memory-mapped.

    Their checksums are compared at the start, once for as long as the files are the same; those of a folder too large
    for that block by block, as it is read. Shards of an earlier release have none: their ends and the range of their
    tokens are looked at.

    Raises:
        ConfigError: the folder is incomplete, damaged or of another version.
    """

    def __init__(self, folder: Path, known: KnownFiles) -> None:
        self.folder, self._known = folder, known
        try:
            self.about = parse_json(read_bytes(folder / SHARD_DESCRIPTION))
            if self.about["format"] != _FORMAT:
                raise ValueError(f"format {self.about['format']}, not {_FORMAT}; prepare it anew")
            if self.about["dtype"] not in _DTYPES:
                raise ValueError(f"dtype {shown(self.about['dtype'])}")
            self._ends, self._bytes, self._hashes = (np.load(folder / f"{a}.npy", mmap_mode="r") for a in _ARRAYS)
            self._tokens = np.memmap(folder / SHARD_TOKENS, dtype=self.about["dtype"], mode="r")
            self.fingerprint, self.tokenizer = self.about["fingerprint"], self.about["tokenizer"]
            lengths = [self.about["tokens"], *[self.about["documents"]] * len(_ARRAYS)]
        except (OSError, ValueError, KeyError, TypeError, EOFError, SyntaxError, RecursionError, MemoryError) as error:
            raise ConfigError(f"{folder}: not a whole set of token shards: {error}") from error
        for name, found, length in zip(
            _FILES, (self._tokens, self._ends, self._bytes, self._hashes), lengths, strict=True
        ):
            if len(found) != length:
                raise damaged(folder / name, f"it was cut: {len(found):,} values, not {length:,}")
        self.num_tokens = len(self._tokens)
        self._blocks: list[BlockChecks] | None = None
        hashes = known.hashes([str(folder / name) for name in _FILES], HASHED_AT_START_BYTES)
        self.contents: Contents = [(str(folder / name), found) for name, found in zip(_FILES, hashes, strict=True)]
        if "contents" in self.about:
            self._check_sums(hashes)
        else:
            self._check_ends()

    def __len__(self) -> int:
        return len(self._ends)

    def tokens(self, index: int) -> np.ndarray:
        """Tokens of one document, its end included: a view of the file."""
        if self._blocks is not None:
            self._check(1, self._ends, index - bool(index), index + 1)
        start, end = (self._ends[index - 1] if index else 0), self._ends[index]
        if self._blocks is not None and end > start:
            self._check(0, self._tokens, start, end)
        return self._tokens[start:end]

    def num_bytes(self, index: int) -> int:
        if self._blocks is not None:
            self._check(2, self._bytes, index, index + 1)
        return int(self._bytes[index])

    def holdout_hash(self, index: int) -> int:
        if self._blocks is not None:
            self._check(3, self._hashes, index, index + 1)
        return int(self._hashes[index])

    def require_ids_below(self, vocab_size: int) -> None:
        """Raise a ConfigError if a token is none of a vocabulary. Checksums hold for those of known tokens."""
        if "contents" in self.about:
            return
        path = self.folder / SHARD_TOKENS
        find = functools.partial(largest_id, dtype=self.about["dtype"])
        (largest,) = self._known.facts([str(path)], "largest", find)
        if largest >= vocab_size:
            raise damaged(path, f"it holds the token {largest:,}, and the tokenizer's vocabulary has {vocab_size:,}")

    def _check(self, file: int, values: np.ndarray, start: int, end: int) -> None:
        assert self._blocks is not None
        offset = getattr(values, "offset", 0)
        self._blocks[file].check(offset + int(start) * values.itemsize, offset + int(end) * values.itemsize)

    def _check_sums(self, hashes: list[str]) -> None:
        told = {name: value for name, value in self.about.items() if name != "sum"}
        if self.about.get("sum") != digest([told]):
            raise damaged(self.folder / SHARD_DESCRIPTION, "its checksum does not hold")
        for name, found in zip(_FILES, hashes, strict=True):
            if found and found != self.about["contents"][name]:
                raise damaged(self.folder / name, "its checksum does not hold")
        if all(hashes):
            return
        self.contents = [(str(self.folder / name), self.about["contents"][name]) for name in _FILES]
        path = self.folder / BLOCK_SUMS
        if self._known.hashes([str(path)]) != [self.about["contents"][BLOCK_SUMS]]:
            raise damaged(path, "its checksum does not hold")
        counts = np.cumsum(self.about["blocks"])
        parts = np.split(np.load(path, mmap_mode="r"), counts[:-1])
        self._blocks = [BlockChecks(self.folder / name, sums) for name, sums in zip(_FILES, parts, strict=True)]

    def _check_ends(self) -> None:
        path = self.folder / "ends.npy"
        (ascending,) = self._known.facts([str(path)], "ascending", are_ascending)
        if not ascending or (len(self._ends) and self._ends[-1] != len(self._tokens)):
            raise damaged(path, "the ends of the documents do not follow each other")


def write_prepared(
    folder: Path,
    documents: Iterator[tuple[str, int]],
    tokenizer: Tokenizer,
    about: dict[str, Any],
    encode: Callable[[str], list[int]] | None = None,
) -> dict[str, Any]:
    """Write texts, each with its holdout hash, as token shards; `prepared.json` comes last and makes them whole.

    Args:
        folder: without a `prepared.json`: a run may be reading it.
        about: what else to remember; its `fingerprint` is that of the documents.
        encode: makes the tokens of a text, where it is not the tokenizer's plain encoding.
    """
    encode = encode or tokenizer.encode
    dtype = _DTYPES[tokenizer.vocab_size > 2**16]
    ends, sizes, hashes = array("q"), array("I"), array("Q")  # of a hundred million documents
    total = 0
    contents: dict[str, str] = {}
    with SummingFile(folder / SHARD_TOKENS) as file:
        for text, holdout in documents:
            ids = np.asarray([*encode(text), tokenizer.eos_id] if text else [], dtype=dtype)
            file.write(ids.tobytes())
            total += len(ids)
            ends.append(total)
            sizes.append(len(text.encode("utf-8", "surrogatepass")))
            hashes.append(holdout)
        contents[SHARD_TOKENS], sums = file.finish(), [file.sums]
        os.fsync(file.fileno())
    for name, values in zip(_ARRAYS, (ends, sizes, hashes), strict=True):
        with SummingFile(folder / f"{name}.npy") as file:
            np.save(file, np.frombuffer(values, dtype=values.typecode))
            contents[f"{name}.npy"] = file.finish()
            sums.append(file.sums)
    with SummingFile(folder / BLOCK_SUMS) as file:
        np.save(file, np.concatenate([np.frombuffer(part, dtype="I") for part in sums]))
        contents[BLOCK_SUMS] = file.finish()
    written = {**about, "format": _FORMAT, "dtype": dtype, "documents": len(ends), "tokens": total}
    written |= {"tokenizer": tokenizer.fingerprint, "contents": contents, "blocks": [len(part) for part in sums]}
    written["sum"] = digest([written])
    write_atomic(folder / SHARD_DESCRIPTION, json.dumps(written, indent=1) + "\n")
    return written
