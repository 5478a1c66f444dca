"""Local files as texts or rows, and a cut of long texts. What cannot be read is reported with its file and place."""

import codecs
import contextlib
import glob
import gzip
import io
import itertools
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import pyarrow.parquet

from titan_pt.config.errors import ConfigError, one_of, shown
from titan_pt.data.sources.formatters import Formatter, get_formatter
from titan_pt.run.signals import until_stopped

logger = logging.getLogger("titan_pt")

# A text file is cut into documents of this many characters, or up to twice as many to end at a blank line.
TEXT_DOCUMENT_CHARACTERS = 4000

_BLOCK_CHARACTERS = 1 << 20

# Files of a folder of token shards: the description is written last.
SHARD_DESCRIPTION = "prepared.json"
SHARD_TOKENS = "tokens.bin"

Columns = tuple[str, ...]
"""What is read of a row; nothing named: all."""
Located = Iterator[tuple[str, Any]]
"""(place in the file, its row). Lines count from 1 as in an editor, rows and items from 0 as in a data frame."""


def read_texts(files: Sequence[str], formatter: str, column: str, **_cache_key: Any) -> Iterator[dict[str, str]]:
    """The texts of all files, in order, as rows for `datasets.Dataset.from_generator`.

    Raises:
        ConfigError: a file or a row of it is not what its kind promises; there are no rows.
        Preempted: this process was asked to stop.
    """
    size = sum(Path(path).stat().st_size for path in files)
    logger.info(f"Converting {len(files)} files, {size / 1e6:,.1f} MB: {files[0]}{' ...' * (len(files) > 1)}")
    some = False
    for path in files:
        texts = until_stopped(_texts(path, get_formatter(formatter, column)))
        first = next(texts, None)
        if first is None:
            logger.warning(f"{path}: holds no documents")
            continue
        some = True
        yield {"text": first}
        yield from ({"text": text} for text in texts)
    if not some:
        raise ConfigError(f"{files[0]}: holds no documents; add some or take it out of path")


def read_rows(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place in the file, row) of a file of objects or table rows.

    Raises:
        ConfigError: the file or a row of it is not what its kind promises.
    """
    with _reading(path):
        yield from _READERS[_ending(path)](path, ())


def _texts(path: str, formatter: Formatter) -> Iterator[str]:
    read = _READERS[_ending(path)]
    with _reading(path):
        for place, row in read(path, formatter.columns):
            yield format_row(formatter, row, f"{path}, {place}")


def place_of(files: Sequence[str], columns: Columns, number: int) -> str:
    """File of a document and its place there; documents count from 0 over all files, which are read again for it."""
    places = (f"{path}, {place}" for path in files for place, _ in _READERS[_ending(path)](path, columns))
    return next(itertools.islice(places, number, None))


def quiet_datasets() -> Any:
    """The `datasets` library, quiet: what goes wrong in it is reported once, as a ConfigError."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)
    return datasets


@contextlib.contextmanager
def _reading(path: str) -> Iterator[None]:
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # gzip, zlib, pyarrow and the file system each have errors of their own
        raise ConfigError(f"{path}: cannot be read: {type(error).__name__}: {error}") from error


def is_prepared(path: str) -> bool:
    """Whether a path is a folder of token shards."""
    return os.path.isfile(os.path.join(os.path.expanduser(path), SHARD_DESCRIPTION))


def is_unfinished(path: str) -> bool:
    """Whether a path is a folder of token shards of which the end was not written."""
    return os.path.isfile(os.path.join(os.path.expanduser(path), SHARD_TOKENS)) and not is_prepared(path)


def matching_files(pattern: str, key: str = "path") -> list[str]:
    """The files of a glob, or the one whose name it is, in order.

    Args:
        key: the setting that the pattern comes from.

    Raises:
        ConfigError: there are none, or not all are of one known kind.
    """
    path = os.path.expanduser(pattern)
    files = [path] if os.path.isfile(path) else sorted(filter(os.path.isfile, glob.glob(path, recursive=True)))
    if is_unfinished(path):
        raise ConfigError(f"{key} = {shown(pattern)}: titan_pt.tools.prepare did not finish there; run it again")
    if os.path.isdir(path):
        raise ConfigError(
            f"{key} = {shown(pattern)} is a folder; name its files, such as {str(Path(path, '*.parquet'))!r}"
        )
    if not files:
        raise ConfigError(f"{key} = {shown(pattern)} matches no file; the working folder is {Path.cwd()}")
    check_kinds(files)
    return files


def format_row(formatter: Formatter, row: Any, where: str) -> str:
    """The text of a row.

    Raises:
        ConfigError: the formatter cannot read the row, or gives something else than text.
    """
    if formatter.name == "text":
        column = formatter.columns[0]
        return checked_text(row[column], f"{where}: {column!r}")
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
    return checked_text(text, f"{where}: the text of formatter {formatter.name!r}")


def check_kinds(files: list[str]) -> None:
    """Raise a ConfigError unless all files are of one known kind."""
    endings = {_ending(path) for path in files}
    if len({_READERS[ending] for ending in endings}) > 1:
        raise ConfigError(f"{one_of(endings)} files are mixed; make path match one kind")


def _ending(path: str) -> str:
    found = next((ending for ending in _READERS if path.endswith(ending)), None)
    if found is None:
        raise ConfigError(f"{path}: unknown kind of file; known are {one_of(_READERS)}")
    return found


def checked_text(value: Any, what: str) -> str:
    """The value, if a tokenizer can read it.

    Raises:
        ConfigError: it is null, not text, or not UTF-8.
    """
    if not isinstance(value, str):
        found = "is null" if value is None else f"is {type(value).__name__}, not text"
        raise ConfigError(f"{what} {found}; repair or remove it, or name another column in text_field")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{what} is not UTF-8: {error.reason} at character {error.start}; repair it") from None
    return value


def cut_text(file: IO[str]) -> Iterator[str]:
    """Pieces of a text of any length that end at a blank line, else a line, else a word; joined they are the text."""
    rest = ""
    while block := file.read(_BLOCK_CHARACTERS):
        rest += block
        start = 0
        while len(rest) - start > 2 * TEXT_DOCUMENT_CHARACTERS:
            end = _end_of_piece(rest, start + TEXT_DOCUMENT_CHARACTERS, start + 2 * TEXT_DOCUMENT_CHARACTERS)
            yield rest[start:end]
            start = end
        rest = rest[start:]
    if rest:
        yield rest


def _end_of_piece(text: str, least: int, most: int) -> int:
    for separator in ("\n\n", "\n", " "):
        at = text.find(separator, least, most)
        if at >= 0:
            return at + len(separator)
    return most


def _json(path: str, columns: Columns) -> Located:
    """One object a line, or an array of objects."""
    with _open(path) as file:
        is_array = file.read(100).lstrip(codecs.BOM_UTF8 + b" \t\r\n").startswith(b"[")
        file.seek(0)
        rows = _array_items(file, path) if is_array else _lines(file, path)
        for place, row in rows:
            if not isinstance(row, dict):
                raise ConfigError(f"{path}, {place}: is {type(row).__name__}, not an object; repair or remove it")
            for column in columns:
                if column not in row:
                    raise ConfigError(f"{path}, {place}: no {column!r}; it has {one_of(row)}; set text_field")
            yield place, row


def _lines(file: Iterable[bytes], path: str) -> Located:
    for number, line in enumerate(file, 1):
        if line := line.removeprefix(codecs.BOM_UTF8).strip():
            yield f"line {number}", _parsed(line, f"{path}, line {number}")


def _array_items(file: IO[bytes], path: str) -> Located:
    for number, row in enumerate(_parsed(file.read().removeprefix(codecs.BOM_UTF8), path)):
        yield f"item {number}", row


def _parsed(text: bytes, where: str) -> Any:
    try:
        return json.loads(text.decode())
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, a number of thousands of digits
        raise ConfigError(f"{where}: not JSON: {error}; repair or remove it") from None


def _parquet(path: str, columns: Columns) -> Located:
    file = pyarrow.parquet.ParquetFile(path, page_checksum_verification=True)  # where the file has any
    check_columns(file.schema_arrow.names, columns, path)
    numbers = itertools.count()
    for batch in file.iter_batches(batch_size=256, columns=list(columns) or None):
        for row in batch.to_pylist():
            yield f"row {next(numbers)}", row


def check_columns(names: Sequence[str], columns: Columns, path: str) -> None:
    """Raise a ConfigError unless a table has all columns."""
    for column in columns:
        if column not in names:
            raise ConfigError(f"{path}: no column {column!r}; it has {one_of(names)}; set text_field")


def _text(path: str, columns: Columns) -> Located:
    if not columns:
        raise ConfigError(f"{path}: a text file has no rows; known are {one_of(_READERS.keys() - {'.txt'})}")
    if columns != ("text",):
        raise ConfigError(f"{path}: no column {columns[0]!r}; a text file has no columns, so leave text_field out")
    with io.TextIOWrapper(_open(path), encoding="utf-8-sig") as file:
        for number, piece in enumerate(cut_text(file), 1):
            yield f"piece {number}", {"text": piece}


def _open(path: str) -> Any:
    return gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb")


_READERS: dict[str, Callable[[str, Columns], Located]] = {
    ".jsonl": _json,
    ".jsonl.gz": _json,
    ".json": _json,
    ".parquet": _parquet,
    ".txt": _text,
}
