"""Sets of documents with random access: embedded ones, local files, hub datasets, and a user's own."""

import errno
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import pyarrow

from titan_pt.config.builtin_datasets import BUILTIN_DATASETS, complete
from titan_pt.config.errors import ConfigError, nearest, one_of, shown
from titan_pt.config.schema.job_config import Source
from titan_pt.data.builtin.arithmetic import LEVELS
from titan_pt.data.builtin.sources import Arithmetic, ArithmeticLevel, PythonStdlib
from titan_pt.data.remote.hub import attempt
from titan_pt.data.remote.listing import list_addresses, list_dataset, list_local
from titan_pt.data.remote.parquet import is_remote
from titan_pt.data.remote.reader_pool import ReaderPool
from titan_pt.data.remote.retry import Attempts, Stopped, Unreachable, persist
from titan_pt.data.remote.row_group_documents import SMALL_UNITS_PER_STREAM, RowGroupDocuments
from titan_pt.data.remote.row_groups import Listing
from titan_pt.data.sources.arrow import downloaded_dataset, local_files
from titan_pt.data.sources.formatters import Formatter, find_formatter
from titan_pt.data.sources.local import checked_text, format_row, matching_files, quiet_datasets
from titan_pt.data.sources.prepared import PreparedDocuments, is_prepared
from titan_pt.run.exit_codes import Preempted
from titan_pt.run.files import make_writable


class Documents(Protocol):
    """A fixed, ordered set of texts."""

    fingerprint: str
    """Changes when the documents do."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> str: ...


def sample_numbers(documents: Documents, count: int) -> list[int]:
    """Numbers of some documents from all over the set; where reading one fetches a whole unit, from a single unit."""
    rows = getattr(documents, "sample_rows", range(len(documents)))
    size = len(rows)
    return [rows[i * size // count] for i in range(count)] if size > count else list(rows)


class Rows(Protocol):
    """A fixed, ordered set of texts or, where `[[data.sources]]` has a formatter, rows for it."""

    fingerprint: str
    """Changes when they do."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


SourceFactory = Callable[[Source, int], Rows]
_SOURCES: dict[str, SourceFactory] = {}


def register_source(name: str, factory: SourceFactory) -> None:
    """Make `[[data.sources]] name` known: `factory(source, seed)` gives its documents, or rows for a formatter."""
    if name in _SOURCES or name in BUILTIN_DATASETS:
        raise ValueError(f"source {name!r} is registered already")
    _SOURCES[name] = factory


def list_units(source: Source, *, reading: ReaderPool, num_streams: int) -> Listing | None:
    """The parquet units of a source that is read by them; None of one that is not and has no commit to keep to.

    Raises:
        ConfigError: missing files, dataset, subset or split.
    """
    where, source = f"data source {source.name!r}", complete(source)
    try:
        if source.path is not None and is_remote(source.path):
            return list_addresses(source.path, reading.store)
        if source.path is not None and not is_prepared(source.path):
            files = matching_files(source.path)
            listing = list_local(files, reading.store) if all(file.endswith(".parquet") for file in files) else None
            large = listing is not None and len(listing) >= SMALL_UNITS_PER_STREAM * num_streams
            return listing if large else None  # a few row groups are converted, checked, and read in any order
        if source.dataset is not None and not os.path.isdir(source.dataset) and not _is_offline():
            return list_dataset(source, reading.patience, reading.store, reading.stop)
    except ConfigError as error:
        raise ConfigError(*(f"{where}: {problem}" for problem in error.problems)) from None
    except (OSError, pyarrow.ArrowException) as error:
        raise ConfigError(f"{where}: cannot be read: {type(error).__name__}: {error}") from error
    return None


def open_source(
    source: Source,
    *,
    seed: int,
    cache_dir: str | None,
    listing: Listing | None = None,
    reading: ReaderPool | None = None,
    num_streams: int = 1,
) -> Documents:
    """The documents of one `[[data.sources]]` table.

    Args:
        listing: of `list_units`; with `reading`.

    Raises:
        ConfigError: an unknown name, missing files, an unreadable file or row, a missing column, no documents.
        Preempted: this process was asked to stop while files were converted.
    """
    where, source = f"data source {source.name!r}", complete(source)
    check_source(source)
    if source.path is not None or source.dataset is not None:
        documents: Documents = _read(source, where, cache_dir, listing, reading, num_streams)
    else:
        try:
            formatter = find_formatter(source) if source.formatter else None
        except ConfigError as error:
            raise ConfigError(*(f"{where}: {problem}" for problem in error.problems)) from None
        documents = _Checked(_SOURCES[source.name](source, seed), where, formatter)
    if len(documents) == 0:
        raise ConfigError(f"{where}: holds no documents")
    return documents


def check_sources(sources: Iterable[Source]) -> None:
    """Raise a ConfigError with all that can be told without opening a file or asking the hub: names, globs, kinds."""
    problems: list[str] = []
    for source in sources:
        try:
            check_source(source)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(*problems)


def check_source(source: Source) -> None:
    """The same for one source."""
    where, source = f"data source {source.name!r}", complete(source)
    if source.path is not None and (is_remote(source.path) or is_prepared(source.path)):
        return
    if source.path is not None:
        try:
            matching_files(source.path)
        except ConfigError as error:
            raise ConfigError(*(f"{where}: {problem}" for problem in error.problems)) from None
    elif source.dataset is None and source.name not in _SOURCES:
        known = [*_SOURCES, *BUILTIN_DATASETS]
        raise ConfigError(
            f"{where}: not built in{nearest(source.name, known)}; built in are {one_of(known)}; "
            "for documents of your own give path (local files) or dataset (the hub)"
        )


def _read(
    source: Source,
    where: str,
    cache_dir: str | None,
    listing: Listing | None,
    reading: ReaderPool | None,
    num_streams: int,
) -> Documents:
    if (listing is None or not listing.files) and not is_prepared(source.path or ""):
        _check_cache(cache_dir)
    try:
        if listing is not None and not listing.files:
            return _download(source.model_copy(update={"revision": listing.commit}), where, cache_dir, reading)
        if listing is not None and reading is not None:
            return _open_units(source, where, listing, reading, num_streams)
        if source.path is not None and is_prepared(source.path):
            return PreparedDocuments(Path(source.path).expanduser())
        if source.path:
            return local_files(source, matching_files(source.path), where, cache_dir)
        return _download(source, where, cache_dir, reading)
    except (Unreachable, Stopped, Preempted):
        raise
    except Exception as error:  # `datasets` and what it calls raise many kinds; the cause's text is what helps
        cause = error.__cause__ or error
        cause = error if isinstance(error, ConfigError) else cause
        if isinstance(cause, Preempted):
            raise cause from None
        if isinstance(cause, ConfigError):
            raise ConfigError(*(f"{where}: {problem}" for problem in cause.problems)) from None
        way_out = "; set data.cache_dir and HF_HOME to folders with space to write" if _cannot_write(cause) else ""
        raise ConfigError(f"{where}: cannot be read: {type(cause).__name__}: {cause}{way_out}") from error


def _download(source: Source, where: str, cache_dir: str | None, reading: ReaderPool | None) -> Documents:
    """A dataset downloaded whole; like all that comes over a network it is tried again."""
    assert source.dataset is not None
    if reading is None or os.path.isdir(source.dataset) or _is_offline():
        return downloaded_dataset(source, where, cache_dir)
    attempts = Attempts(f"dataset {source.dataset}: download", reading.patience, reading.patience.start_seconds)
    return persist(lambda: attempt(lambda: downloaded_dataset(source, where, cache_dir)), attempts, reading.stop)


def _open_units(source: Source, where: str, listing: Listing, reading: ReaderPool, num_streams: int) -> Documents:
    for file in listing.files:
        if not is_remote(file.location) and (
            not os.path.isfile(file.location) or os.path.getsize(file.location) != file.size
        ):
            raise ConfigError(f"{file.location}: is not the file that rank 0 found; give all machines the same files")
    by_unit = len(listing) >= SMALL_UNITS_PER_STREAM * num_streams
    documents = RowGroupDocuments(listing, find_formatter(source), reading, where, by_unit=by_unit)
    if len(documents):
        documents.check()
    return documents


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _check_cache(cache_dir: str | None) -> None:
    """Raise a ConfigError unless Arrow files can be written: the source would be blamed for it."""
    own = quiet_datasets().config.HF_DATASETS_CACHE
    name = f"data.cache_dir = {cache_dir!r}" if cache_dir else f"data.cache_dir, unset, so {own} of HF_HOME"
    make_writable(Path(cache_dir or own).expanduser(), name)


def _cannot_write(error: BaseException) -> bool:
    """Whether the library's own files are in the way: a source's would have been named by a ConfigError."""
    return isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT)


class _Checked:
    """Documents of a registered source, which may give anything; with a formatter they are rows for it."""

    def __init__(self, documents: Rows, where: str, formatter: Formatter | None) -> None:
        self._documents, self._where, self._formatter = documents, where, formatter
        self.fingerprint = documents.fingerprint + (f"-{formatter.fingerprint}" if formatter else "")

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index: int) -> str:
        where = f"{self._where}: document {index}"
        if self._formatter is None:
            return checked_text(self._documents[index], where)
        return format_row(self._formatter, self._documents[index], where)


def _python_stdlib(source: Source, _seed: int) -> Rows:
    if source.subset is not None:
        raise ConfigError(f"data source {source.name!r}: subset = {shown(source.subset)}: it has none; leave it out")
    return PythonStdlib()


def _arithmetic(source: Source, seed: int) -> Rows:
    rows = source.formatter is not None  # of GSM8K
    if source.subset is None:
        return Arithmetic(seed, rows=rows)
    levels = {f"level-{level}": level for level in LEVELS}
    if source.subset not in levels:
        allowed = "; ".join(f'"{name}" ({LEVELS[level]})' for name, level in levels.items())
        raise ConfigError(
            f"data source {source.name!r}: subset = {shown(source.subset)}: unknown; allowed are {allowed}; "
            "leave it out for endless problems of all kinds"
        )
    return ArithmeticLevel(levels[source.subset], rows=rows)


def _arithmetic_plain(source: Source, seed: int) -> Rows:
    names = {f"level-{level}": level for level in LEVELS}
    if source.subset not in names:
        raise ConfigError(f"data source {source.name!r}: subset = {shown(source.subset)}: want one of {one_of(names)}")
    return ArithmeticLevel(names[source.subset], plain=True)


register_source("python_stdlib", _python_stdlib)
register_source("arithmetic", _arithmetic)
register_source("arithmetic_plain", _arithmetic_plain)
