"""Texts that a formatter makes of rows, and their content. Imported where a source has a formatter."""

import hashlib
from typing import Any

import pyarrow

from titan_pt.config.errors import ConfigError
from titan_pt.data.permutation import digest
from titan_pt.data.sources.formatters import Formatter
from titan_pt.data.sources.identity import Contents, KnownFiles


def formatted(formatter: Formatter, row: Any, where: str) -> str:
    """What a formatter makes of a row.

    Raises:
        ConfigError: it cannot read the row, or gives something else than text.
    """
    try:
        text = formatter.format(row)
    except Exception as error:  # a user's function, and rows of any shape
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(
            f"{where}: formatter {formatter.name!r} cannot read it: {reason}; repair or remove it"
        ) from error
    if not isinstance(text, str):
        found = "None" if text is None else type(text).__name__
        raise ConfigError(f'{where}: formatter {formatter.name!r} gives {found}, not text ("" is passed over)')
    return text


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
