"""Sets of documents with random access: embedded ones, local files, hub datasets, and a user's own."""

import logging
from collections.abc import Callable
from typing import Protocol

from titan_pt.config.builtin_sources import BUILTIN_DATASETS, complete
from titan_pt.config.errors import ConfigError, nearest, one_of
from titan_pt.config.job_config import Source
from titan_pt.data.arrow import downloaded_dataset, local_files, matching_files
from titan_pt.data.embedded import Arithmetic, PythonStdlib
from titan_pt.data.files import checked_text

logger = logging.getLogger("titan_pt")


class Documents(Protocol):
    """A fixed, ordered set of texts."""

    fingerprint: str
    """Changes when the documents do."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> str: ...


def sample_numbers(documents: Documents, count: int) -> list[int]:
    """Numbers of some documents from all over the set; where reading one fetches a whole unit, from its first unit."""
    size = getattr(documents, "first_unit_rows", len(documents))
    return [i * size // count for i in range(count)] if size > count else list(range(size))


SourceFactory = Callable[[Source, int], Documents]
_SOURCES: dict[str, SourceFactory] = {}


def register_source(name: str, factory: SourceFactory) -> None:
    """Make `[[data.sources]] name` known: `factory(source, seed)` gives its documents."""
    if name in _SOURCES or name in BUILTIN_DATASETS:
        raise ValueError(f"source {name!r} is registered already")
    _SOURCES[name] = factory


def open_source(source: Source, *, seed: int, cache_dir: str | None) -> Documents:
    """The documents of one `[[data.sources]]` table.

    Raises:
        ConfigError: an unknown name, missing files, an unreadable file or row, a missing column, no documents.
    """
    where, source = f"data source {source.name!r}", complete(source)
    if source.path is not None or source.dataset is not None:
        documents: Documents = _read(source, where, cache_dir)
    elif source.name in _SOURCES:
        documents = _Checked(_SOURCES[source.name](source, seed), where)
    else:
        known = [*_SOURCES, *BUILTIN_DATASETS]
        raise ConfigError(
            f"{where}: not built in{nearest(source.name, known)}; built in are {one_of(known)}; "
            "for documents of your own give path (local files) or dataset (the hub)"
        )
    if len(documents) == 0:
        raise ConfigError(f"{where}: holds no documents")
    return documents


def _read(source: Source, where: str, cache_dir: str | None) -> Documents:
    try:
        if source.path:
            return local_files(source, matching_files(source.path), where, cache_dir)
        return downloaded_dataset(source, where, cache_dir)
    except Exception as error:  # `datasets` and what it calls raise many kinds; the cause's text is what helps
        cause = error.__cause__ or error
        if isinstance(cause, ConfigError):
            raise ConfigError(*(f"{where}: {problem}" for problem in cause.problems)) from None
        raise ConfigError(f"{where}: cannot be read: {type(cause).__name__}: {cause}") from error


class _Checked:
    """Documents of a registered source, which may give anything."""

    def __init__(self, documents: Documents, where: str) -> None:
        self._documents, self._where = documents, where
        self.fingerprint = documents.fingerprint

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index: int) -> str:
        return checked_text(self._documents[index], f"{self._where}: document {index}")


register_source("python_stdlib", lambda _source, _seed: PythonStdlib())
register_source("arithmetic", lambda _source, seed: Arithmetic(seed))
