"""Local files as texts or rows. Whatever cannot be read is reported with its file and place."""

import contextlib
import glob
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from titan_pt.config.errors import ConfigError, one_of
from titan_pt.data.sources.formatters import Formatter, get_formatter
from titan_pt.protocols.registry import import_attribute
from titan_pt.run.signals import until_stopped

logger = logging.getLogger("titan_pt")

# Files of a folder of token shards: the description is written last.
SHARD_DESCRIPTION = "prepared.json"
SHARD_TOKENS = "tokens.bin"

Columns = tuple[str, ...]
"""Columns that are read of a row; none named: all."""
Located = Iterator[tuple[str, Any]]
"""(place in the file, its row). Lines count from 1 as in an editor, rows and items from 0 as in a data frame."""
Reader = Callable[[str, Columns], Located]

# By the end of a file's name; a reader is imported when there is such a file.
_READERS: dict[str, Reader | str] = {
    ".jsonl": "titan_pt.data.sources.json_rows:read",
    ".jsonl.gz": "titan_pt.data.sources.json_rows:read",
    ".json": "titan_pt.data.sources.json_rows:read",
    ".parquet": "titan_pt.data.sources.parquet_rows:read",
    ".txt": "titan_pt.data.sources.text_pieces:read",
}


def read_texts(files: Sequence[str], formatter: str, column: str, **_cache_key: Any) -> Iterator[dict[str, str]]:
    """Texts of all files, in order, as rows for `datasets.Dataset.from_generator`.

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


def _texts(path: str, formatter: Formatter) -> Iterator[str]:
    with reading(path):
        for place, row in reader_of(path)(path, formatter.columns):
            yield format_row(formatter, row, f"{path}, {place}")


def quiet_datasets() -> Any:
    """The `datasets` library, quiet: what goes wrong in it is reported once, as a ConfigError."""
    import datasets
    import huggingface_hub
    import tqdm

    # Its bars, hidden ones too, make a lock between processes: a killed worker's is told of as leaked at the end.
    tqdm.tqdm.set_lock(threading.RLock())
    datasets.disable_progress_bars()
    huggingface_hub.utils.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)
    return datasets


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """Context in which whatever goes wrong is an error of this file."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # gzip, zlib, pyarrow and the file system each have errors of their own
        raise ConfigError(f"{path}: cannot be read: {type(error).__name__}: {error}") from error


def is_prepared(path: str) -> bool:
    """Whether a path is a folder of token shards."""
    return os.path.isfile(os.path.join(path, SHARD_DESCRIPTION))


def is_unfinished(path: str) -> bool:
    """Whether a path is a folder of token shards of which the end was not written."""
    return os.path.isfile(os.path.join(path, SHARD_TOKENS)) and not is_prepared(path)


def matching_files(pattern: str, key: str = "path") -> list[str]:
    """The files of a glob, or the one whose name it is, in order.

    Args:
        key: the setting that the pattern comes from.

    Raises:
        ConfigError: there are none, or not all are of one known kind.
    """
    files = [pattern] if os.path.isfile(pattern) else sorted(filter(os.path.isfile, glob.glob(pattern, recursive=True)))
    if not files:
        from titan_pt.data.sources.unreadable import no_files

        raise no_files(pattern, key, unfinished=is_unfinished(pattern))
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
    from titan_pt.data.sources.formatted_texts import formatted

    return checked_text(formatted(formatter, row, where), f"{where}: the text of formatter {formatter.name!r}")


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


def row_kinds() -> str:
    """The kinds of files that hold rows, in a message."""
    return one_of(_READERS.keys() - {".txt"})


def reader_of(path: str) -> Reader:
    """The reader of a file's kind."""
    found = _READERS[_ending(path)]
    reader: Reader = import_attribute(found) if isinstance(found, str) else found
    return reader


def checked_text(value: Any, what: str) -> str:
    """Return the value, if a tokenizer can read it.

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
