"""Whole sets of documents as memory-mapped Arrow files, which `datasets` makes of local files and downloads."""

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.compute

from titan_pt.config.errors import ConfigError, one_of
from titan_pt.config.schema.job_config import Source
from titan_pt.data.permutation import digest
from titan_pt.data.sources.formatters import find_formatter
from titan_pt.data.sources.identity import file_state
from titan_pt.data.sources.local import checked_text, matching_files, quiet_datasets, read_texts
from titan_pt.data.sources.registry import ListingJson, SourceContext, title
from titan_pt.protocols.registry import import_attribute

logger = logging.getLogger("titan_pt")

_PLACE_OF = "titan_pt.data.sources.rows:place_of"
# Part of a converted file's name in the cache: raise it when `local.py` cuts or reads differently.
_CONVERSION = 3
# So much of a file's end is in the fingerprint of its source.
_TAIL_BYTES = 1 << 16


def open_documents(source: Source, context: SourceContext, _listing: ListingJson | None) -> "ArrowColumn":
    """The texts of a source's local files."""
    assert source.path is not None
    return local_files(source, matching_files(source.path), title(source), context)


class ArrowColumn:
    """The text column of a `datasets.Dataset`: memory-mapped, so that its size does not matter.

    Args:
        find: the file of a document and its place there, by its number.
    """

    def __init__(
        self,
        dataset: Any,
        column: str,
        where: str,
        fingerprint: str,
        contents: Sequence[tuple[str, str]] = (),
        find: Callable[[int], str] | None = None,
    ) -> None:
        if column not in dataset.column_names:
            raise ConfigError(f"no column {column!r}; it has {one_of(dataset.column_names)}; set text_field")
        kind = getattr(dataset.features[column], "dtype", None)
        if kind not in ("string", "large_string"):
            raise ConfigError(f"column {column!r} holds {kind or 'nested values'}, not text; set text_field")
        self._rows, self._column = dataset.select_columns([column]), column
        self.fingerprint, self.contents, self._find = fingerprint, contents, find
        self._check_rows(where)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> str:
        try:
            return self._rows[index][self._column]
        except UnicodeDecodeError as error:
            raise ConfigError(f"{self.place(index)}: {self._column!r} is not UTF-8: {error}; repair it") from None

    def place(self, number: int) -> str:
        """Where a document is, for messages."""
        return self._find(number) if self._find else f"row {number}"

    def _check_rows(self, where: str) -> None:
        """Find missing texts at the start, not hours later. Looks at lengths alone, so it is quick."""
        num_rows = num_empty = 0
        for chunk in self._rows.data.column(self._column).chunks:
            if chunk.null_count:
                checked_text(None, f"row {num_rows + chunk.is_null().index(True).as_py()}: {self._column!r}")
            num_rows += len(chunk)
            num_empty += pyarrow.compute.equal(pyarrow.compute.binary_length(chunk), 0).sum().as_py() or 0
        if num_empty == num_rows:
            raise ConfigError(f"column {self._column!r} holds no text in any of {num_rows:,} rows; set text_field")
        if num_empty:
            logger.warning(f"{where}: {num_empty:,} of {num_rows:,} documents are empty and are passed over")


def local_files(source: Source, files: list[str], where: str, context: SourceContext) -> ArrowColumn:
    """Texts of local files, converted to Arrow once.

    Raises:
        ConfigError: a file or a row of it is not what its kind promises.
    """
    formatter, known = find_formatter(source), context.known_files
    before, hashes = [file_state(path) for path in files], known.hashes(files)
    dataset = converted(
        {
            "files": tuple(files),
            "formatter": formatter.name,
            "column": source.text_field or "text",
            # From here on only to convert again when a file or the conversion has changed.
            "contents": tuple(hashes),
            "fingerprint": formatter.key,
            "version": _CONVERSION,
        },
        read_texts,
        context,
    )
    if [file_state(path) for path in files] != before and known.hashes(files) != hashes:
        shutil.rmtree(Path(dataset.cache_files[0]["filename"]).parent)
        raise ConfigError("its files were written to while they were read; start again when they are whole")
    find = lambda number: import_attribute(_PLACE_OF)(files, formatter.columns, number)  # noqa: E731
    fingerprint = digest([formatter.fingerprint, *known.facts(files, "tail", file_identity)])
    contents = list(zip(files, hashes, strict=True))
    if formatter.name != "text":
        from titan_pt.data.sources.formatted_texts import texts_of_formatter

        contents += texts_of_formatter(dataset, formatter, known)
    return ArrowColumn(dataset, "text", where, fingerprint, contents, find)


def converted(arguments: dict[str, Any], generate: Callable[..., Iterator[Any]], context: SourceContext) -> Any:
    """The Arrow dataset of the texts that a generator gives for these arguments, made once: they are its key."""
    library = quiet_datasets()
    return library.Dataset.from_generator(
        generate,
        features=library.Features(text=library.Value("large_string")),
        cache_dir=context.settings.data.cache_dir,
        writer_batch_size=256,  # documents held in memory; one may be a whole book
        gen_kwargs=arguments,  # no lists: the library would make a call of each of their items
    )


def file_identity(path: str) -> str:
    """Name, size and a hash of a file's end: what the fingerprints of runs hold of a file."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL_BYTES))
        return f"{Path(path).name}:{size}:{hashlib.sha256(file.read()).hexdigest()}"
