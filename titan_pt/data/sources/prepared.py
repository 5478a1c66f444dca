"""Token shards: a source tokenised once, then read as memory-mapped numbers. `python -m titan_pt.tools.prepare`."""

import json
import os
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from titan_pt.components.tokenizer import Tokenizer
from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.job_config import Source
from titan_pt.data.sources.documents import TokenDocuments
from titan_pt.data.sources.local import SHARD_DESCRIPTION, SHARD_TOKENS
from titan_pt.data.sources.registry import ListingJson, SourceContext
from titan_pt.run.files import write_atomic

_FORMAT = 1


def open_documents(source: Source, _context: SourceContext, _listing: ListingJson | None) -> "PreparedDocuments":
    """The token shards of a source's folder."""
    assert source.path is not None
    return PreparedDocuments(Path(source.path).expanduser())


class PreparedDocuments(TokenDocuments):
    """Token shards of a folder, memory-mapped.

    Raises:
        ConfigError: the folder is incomplete or of another version.
    """

    def __init__(self, folder: Path) -> None:
        try:
            about = json.loads((folder / SHARD_DESCRIPTION).read_text())
            if about["format"] != _FORMAT:
                raise ValueError(f"format {about['format']}, not {_FORMAT}; prepare it anew")
            self._ends = np.load(folder / "ends.npy", mmap_mode="r")
            self._bytes = np.load(folder / "bytes.npy", mmap_mode="r")
            self._hashes = np.load(folder / "hashes.npy", mmap_mode="r")
            self._tokens = np.memmap(folder / SHARD_TOKENS, dtype=about["dtype"], mode="r")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{folder}: not a whole set of token shards: {error}") from error
        if len(self._ends) != about["documents"] or len(self._tokens) != about["tokens"]:
            raise ConfigError(f"{folder}: tokens.bin or ends.npy was cut; prepare it anew")
        self.fingerprint = about["fingerprint"]
        self.tokenizer = about["tokenizer"]
        self.num_tokens = len(self._tokens)

    def __len__(self) -> int:
        return len(self._ends)

    def tokens(self, index: int) -> np.ndarray:
        """Tokens of one document, its end included: a view of the file."""
        start = self._ends[index - 1] if index else 0
        return self._tokens[start : self._ends[index]]

    def num_bytes(self, index: int) -> int:
        return int(self._bytes[index])

    def holdout_hash(self, index: int) -> int:
        return int(self._hashes[index])


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
    dtype = "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"
    ends, sizes, hashes = array("q"), array("I"), array("Q")  # of a hundred million documents
    total = 0
    with (folder / SHARD_TOKENS).open("wb") as file:
        for text, holdout in documents:
            ids = np.asarray([*encode(text), tokenizer.eos_id] if text else [], dtype=dtype)
            file.write(ids.tobytes())
            total += len(ids)
            ends.append(total)
            sizes.append(len(text.encode("utf-8", "surrogatepass")))
            hashes.append(holdout)
        file.flush()
        os.fsync(file.fileno())
    for name, values in (("ends", ends), ("bytes", sizes), ("hashes", hashes)):
        np.save(folder / f"{name}.npy", np.frombuffer(values, dtype=values.typecode))
    written = {**about, "format": _FORMAT, "dtype": dtype, "documents": len(ends), "tokens": total}
    written["tokenizer"] = tokenizer.fingerprint
    write_atomic(folder / SHARD_DESCRIPTION, json.dumps(written, indent=1) + "\n")
    return written
