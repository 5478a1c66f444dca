"""Sets of documents as streams see them: texts with random access, tokens, or row groups that arrive over time."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

from titan_pt.data.sources.identity import Contents
from titan_pt.protocols.registry import import_attribute

if TYPE_CHECKING:
    from titan_pt.data.sources.other_documents import StreamedDocuments, TokenDocuments


class Stopped(Exception):
    """A reader was closed while somebody waited for it."""


class Documents(Protocol):
    """A fixed, ordered set of texts with random access."""

    fingerprint: str
    """Hash of names, sizes and parts of the files, on which the held-out split of row groups depends too.

    `contents_of` gives what the documents hold.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> str: ...


def contents_of(documents: Any) -> Contents:
    """Hashes of the contents of the files of some documents; none where they are not of files."""
    return list(getattr(documents, "contents", ()))


def are_tokens(documents: Any) -> "TypeGuard[TokenDocuments]":
    """Whether documents are tokens already."""
    return hasattr(documents, "holdout_hash")


def are_streamed(documents: Any) -> "TypeGuard[StreamedDocuments]":
    """Whether documents are fetched row group by row group."""
    return hasattr(documents, "by_row_group")


class Order(Protocol):
    """A stream's way through one source. A place is a number that finds a drawn document again."""

    draws: int
    """Documents drawn so far, those that gave no text included."""

    def next(self) -> int | None:
        """The place of the next document; None when the source is spent."""
        ...

    def read(self, place: int) -> tuple[int, str | None]:
        """The document's number in the source, and its text; None where it is lost with its row group."""
        ...

    def state_dict(self) -> Any:
        """Everything beside `draws` that a resume needs, as JSON."""
        ...

    def load_state_dict(self, draws: int, state: Any) -> None:
        """Go on where the state was taken."""
        ...


@dataclass(frozen=True)
class OrderKey:
    """Everything that decides the order of one source's documents in one stream."""

    source: str
    max_epochs: float | None
    seed: int
    index: int
    """Number of the stream."""
    num_streams: int


@dataclass(frozen=True)
class SkipOptions:
    """Options for row groups that cannot be read: whether later ones come first, and where decisions are recorded."""

    folder: Path | None = None
    """Folder of the records; None keeps them in memory."""
    writer: str = "0"
    """Name of this process's record."""
    substitute_after: float | None = None
    """Seconds of waiting after which later row groups are read first; None: never."""

    @functools.cached_property
    def log(self) -> Any:
        """The SkipLog of `data/remote` that all streams of these options share."""
        return import_attribute("titan_pt.data.remote.skip_log:SkipLog")(self.folder, self.writer)


def sample_rows(documents: Documents) -> range:
    """Numbers of documents that are cheap to look at: the first readable row group, or all of them."""
    rows: range = getattr(documents, "sample_rows", range(len(documents)))
    return rows


def sample_numbers(documents: Documents, count: int) -> list[int]:
    """Numbers of at most `count` documents, spread over `sample_rows`."""
    rows = sample_rows(documents)
    size = len(rows)
    return [rows[i * size // count] for i in range(count)] if size > count else list(rows)
