"""The texts that a formatter made, as content. Imported where a source has a formatter."""

import hashlib
from typing import Any

import pyarrow

from titan_pt.data.permutation import digest
from titan_pt.data.sources.formatters import Formatter
from titan_pt.data.sources.identity import Contents, KnownFiles


def texts_of_formatter(dataset: Any, formatter: Formatter, known: KnownFiles) -> Contents:
    """Hash of the texts that a formatter made: those of edited code may be the same."""
    files = [file["filename"] for file in dataset.cache_files]
    hashed = known.facts(files, "texts", _texts_hash)
    return [(f"formatter {formatter.name!r}", digest(hashed))]


def _texts_hash(path: str) -> str:
    """Hash of all texts of an Arrow file, however they are cut into batches."""
    found = hashlib.sha256()
    with pyarrow.memory_map(path) as file:
        for batch in pyarrow.ipc.open_stream(file):
            for text in batch.column(0).to_pylist():
                content = text.encode("utf-8", "surrogatepass")
                found.update(len(content).to_bytes(8, "little") + content)
    return found.hexdigest()[:32]
