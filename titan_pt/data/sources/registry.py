"""Kinds of sources: which module opens a `[[data.sources]]` table. A module is imported when a source needs it."""

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from titan_pt.config.builtin_datasets import BUILTIN_DATASETS, complete
from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.job_config import Data, Source
from titan_pt.data.sources.documents import Documents, Stopped
from titan_pt.data.sources.identity import KnownFiles
from titan_pt.data.sources.local import is_prepared, matching_files, quiet_datasets
from titan_pt.protocols.registry import Registry
from titan_pt.run.exit_codes import Preempted
from titan_pt.run.files import make_writable


@dataclass(frozen=True)
class DataSettings:
    """The part of a config that documents and their order depend on. It can be sent to another process."""

    data: Data
    seed: int
    """Seed of the document order."""
    num_streams: int
    holdout_fraction: float
    """Share of each training source that is held out."""
    folder: Path
    """Folder inside the run folder for listings and for records of skipped row groups."""


@dataclass
class SourceContext:
    """Settings and readers that the sources of one run share while they are opened."""

    settings: DataSettings
    reader_pool: Any = None
    """The ReaderPool of `data/remote`, made by the first source that needs it."""

    @functools.cached_property
    def known_files(self) -> KnownFiles:
        """What is remembered of files' contents."""
        return KnownFiles(self.settings.data.cache_dir)


ListingJson = dict[str, Any]
"""Files of a source as plain JSON values, found by rank 0 for all ranks."""


@dataclass(frozen=True)
class SourceKind:
    """One kind of `[[data.sources]]` table."""

    matches: Callable[[Source], bool]
    module: str
    """Has `open_documents(source, context, listing)` and, where `listed`, `list_documents(source, context)`."""
    listed: bool = False
    """Rank 0 lists the files first, once for a run."""
    converted: bool = False
    """Files without a listing are written as Arrow files to data.cache_dir."""
    registered: bool = False
    """A function makes the documents, whose errors go through as they are."""


# The first that matches is taken.
_KINDS = (
    SourceKind(lambda source: is_address(source.path), "titan_pt.data.remote.sources", listed=True),
    SourceKind(lambda source: source.path is not None and is_prepared(source.path), "titan_pt.data.sources.prepared"),
    SourceKind(lambda source: _is_parquet(source.path), "titan_pt.data.remote.sources", listed=True, converted=True),
    SourceKind(lambda source: source.path is not None, "titan_pt.data.sources.arrow", converted=True),
    SourceKind(lambda source: source.dataset is not None, "titan_pt.data.remote.sources", listed=True, converted=True),
    SourceKind(lambda _source: True, "titan_pt.data.sources.named", registered=True),
)


class SourceItems(Protocol):
    """Items of a registered source: texts or, where `[[data.sources]]` has a formatter, records for it."""

    fingerprint: str
    """Hash that changes when the items do."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


SourceFactory = Callable[[Source, int], SourceItems]
_NAMES = ("python_stdlib", "arithmetic", "arithmetic_plain", "conversations", "worked_problems", "tool_sums", "sorting")
_SOURCES: Registry[SourceFactory] = Registry(
    "source {}", {name: f"titan_pt.data.builtin.sources:open_{name}" for name in _NAMES}, reserved=BUILTIN_DATASETS
)


def register_source(name: str, factory: SourceFactory) -> None:
    """Make `[[data.sources]] name` known: `factory(source, seed)` gives its documents, or records for a formatter.

    Raises:
        ValueError: the name is taken.
    """
    _SOURCES.register(name, factory)


def source_factory(name: str) -> SourceFactory:
    """The registered function of a name."""
    return _SOURCES[name]


def list_source(source: Source, context: SourceContext) -> ListingJson | None:
    """List the files of a source. Rank 0 calls it, once for a run.

    Returns:
        The listing that `open_source` takes; None where the kind needs none.

    Raises:
        ConfigError: missing files, dataset, subset or split.
    """
    with naming(source):
        kind = _kind(complete(source))
    if not kind.listed:
        return None
    found: ListingJson | None = importlib.import_module(kind.module).list_documents(complete(source), context)
    return found


def open_source(source: Source, context: SourceContext, listing: ListingJson | None = None) -> Documents:
    """Open the documents of one `[[data.sources]]` table.

    Args:
        listing: value of `list_source`.

    Raises:
        ConfigError: an unknown name, missing files, an unreadable file or row, a missing column, no documents.
        Preempted: this process was asked to stop while files were converted.
    """
    check_source(source)
    source = complete(source)
    kind = _kind(source)
    if kind.converted and not (listing or {}).get("files"):
        _check_cache(context.settings.data.cache_dir)
    open_documents = importlib.import_module(kind.module).open_documents
    with contextlib.nullcontext() if kind.registered else _readable(source):
        documents: Documents = open_documents(source, context, listing)
    if len(documents) == 0:
        raise ConfigError(f"{title(source)}: holds no documents")
    return documents


def check_sources(sources: Iterable[Source]) -> None:
    """Raise a ConfigError with all that can be found without opening a file or asking the hub: names, globs, kinds."""
    problems: list[str] = []
    for source in sources:
        try:
            check_source(source)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(*problems)


def check_source(source: Source) -> None:
    """Raise a ConfigError unless the source's files match, or its name is known."""
    source = complete(source)
    if source.path is not None:
        if not is_address(source.path) and not is_prepared(source.path):
            with naming(source):
                matching_files(source.path)
    elif source.dataset is None and source.name not in _SOURCES:
        from titan_pt.data.sources.unreadable import unknown_source

        raise unknown_source(source.name, title(source), [*_SOURCES, *BUILTIN_DATASETS])


def title(source: Source) -> str:
    """The source in a message."""
    return f"data source {source.name!r}"


@contextlib.contextmanager
def naming(source: Source) -> Iterator[None]:
    """Begin every problem of a ConfigError with the source's name."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(*(f"{title(source)}: {problem}" for problem in error.problems)) from None


def is_address(path: str | None) -> bool:
    """Whether a path is an http(s) address."""
    return path is not None and path.startswith(("http://", "https://"))


def _is_parquet(path: str | None) -> bool:
    return path is not None and all(file.endswith(".parquet") for file in matching_files(path))


def _kind(source: Source) -> SourceKind:
    return next(kind for kind in _KINDS if kind.matches(source))


@contextlib.contextmanager
def _readable(source: Source) -> Iterator[None]:
    """Turn errors of `datasets` and the libraries below it into a ConfigError with their cause."""
    try:
        yield
    except (Stopped, Preempted):
        raise
    except Exception as error:
        from titan_pt.data.sources.unreadable import explained

        raise explained(error, title(source)) from error


def _check_cache(cache_dir: str | None) -> None:
    """Raise a ConfigError unless Arrow files can be written: the source would be blamed for it."""
    own = quiet_datasets().config.HF_DATASETS_CACHE
    name = f"data.cache_dir = {cache_dir!r}" if cache_dir else f"data.cache_dir, unset, so {own} of HF_HOME"
    make_writable(Path(cache_dir or own), name)
