"""Texts of parquet files that are read row group by row group."""

import hashlib
import io
import json
import logging
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from titan_pt.config.errors import ConfigError
from titan_pt.data.remote.block_order import BlockOrder
from titan_pt.data.remote.parquet import describe_local
from titan_pt.data.remote.reader_pool import THREADS, ReaderPool
from titan_pt.data.remote.retry import Refused, Unfit, Unreadable
from titan_pt.data.remote.row_groups import Listing, RowGroup, RowGroupFile
from titan_pt.data.sources.documents import Order, OrderKey, SkipOptions
from titan_pt.data.sources.formatters import Formatter
from titan_pt.data.sources.identity import Contents, KnownFiles, file_state, settled_state
from titan_pt.data.sources.local import format_row
from titan_pt.data.sources.other_documents import StreamedDocuments
from titan_pt.data.sources.parquet_rows import check_columns, to_rows
from titan_pt.data.sources.registry import is_address

logger = logging.getLogger("titan_pt")

# A source with fewer row groups than this for every stream is small: it is read whole at the start, for random access.
SMALL_GROUPS_PER_STREAM = 8
_OPEN_GROUPS = 256
_MOST_BAD_AT_START = 3
_VERSION = "3"  # of the texts in the cache


class RowGroupDocuments(StreamedDocuments):
    """Texts of a listing's rows. Safe with several threads.

    Args:
        by_row_group: read in blocks of row groups, not document by document: the source is large.
    """

    def __init__(
        self,
        listing: Listing,
        formatter: Formatter,
        reader_pool: ReaderPool,
        where: str,
        known: KnownFiles,
        *,
        by_row_group: bool = True,
    ) -> None:
        self.listing, self.reader_pool, self.by_row_group = listing, reader_pool, by_row_group
        self._formatter, self._where, self._known = formatter, where, known
        local = [file.location for file in listing.files if not is_address(file.location)]
        self._states = {location: settled_state(location)[0] for location in local}
        self.fingerprint = hashlib.sha256(f"{listing.fingerprint}/{formatter.fingerprint}".encode()).hexdigest()[:16]
        self._open: OrderedDict[int, pa.Array] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def contents(self) -> Contents:
        """Hash of each file's content, as far as the start knows it."""
        return [(file.place, file.known_content) for file in self.listing.files]

    def __len__(self) -> int:
        return self.listing.num_rows

    def __getitem__(self, index: int) -> str:
        number = self.listing.row_group_of(index)
        return self.texts(number)[index - self.listing.starts[number]].as_py()

    def place(self, number: int) -> str:
        """Where a document is, for messages."""
        found = self.listing.row_group_of(number)
        return f"{self.listing[found]}, row {number - self.listing.starts[found]}"

    def order(self, key: OrderKey, holdout_fraction: float, held_out: bool, skip: SkipOptions) -> Order:
        return BlockOrder(key, self, self.listing.side(holdout_fraction, held_out), skip)

    def wait_for_ever(self) -> None:
        self.reader_pool.limit_seconds = math.inf

    def interrupt(self) -> None:
        self.reader_pool.interrupt()

    @cached_property
    def sample_rows(self) -> range:
        """The rows of the first row group that can be read: one look at a row costs the whole row group.

        Raises:
            ConfigError: none of the first ones can.
        """
        for number in range(len(self.listing)):
            if self.listing[number].num_rows == 0:
                continue
            try:
                self.texts(number)
            except Unreadable as error:
                if number + 1 < min(_MOST_BAD_AT_START, len(self.listing)):
                    logger.warning(f"{error}; the next one is looked at")
                    continue
                raise self._unreadable(error) from error
            return range(self.listing.starts[number], self.listing.starts[number + 1])
        return range(0)

    def check(self) -> None:
        """Find mistakes at the start, not hours later; a small source is read whole for it.

        Raises:
            ConfigError: there are no rows, a column is missing, a row group of a small source or the first ones of a
                large one cannot be read.
        """
        remote = [file for file in self.listing.files if is_address(file.location)]  # local ones were looked at
        try:
            for file in remote[:1] if self.by_row_group else remote:
                check_columns(self.reader_pool.store.column_names(file), self._formatter.columns, file.name)
            if not self.by_row_group:
                self._check_all()
        except Unreadable as error:
            raise self._unreadable(error) from error
        if not self.sample_rows:
            raise ConfigError("holds no documents")

    def _unreadable(self, error: Unreadable) -> ConfigError:
        return ConfigError(f"cannot be read: {str(error).removeprefix(f'{self._where}, ')}")

    def _check_all(self) -> None:
        stop, requests = self.reader_pool.stop, [self.request(number) for number in range(len(self.listing))]
        empty = sum(_count_empty(self.reader_pool.wait(row_group, stop)) for row_group in requests)
        if empty == len(self):
            raise ConfigError(f"holds no text in any of {empty:,} rows; set text_field")
        if empty:
            logger.warning(f"{self._where}: {empty:,} of {len(self):,} documents are empty and are passed over")

    def texts(self, number: int) -> Any:
        """The texts of a row group: an Arrow array, memory-mapped.

        Raises:
            Unreadable: given up.
            Stopped: the reader was closed meanwhile.
        """
        with self._lock:
            if number in self._open:
                self._open.move_to_end(number)
                return self._open[number]
        row_group = self.listing[number]
        return self._keep(number, self.reader_pool.read(lambda: self._load(row_group), self._what(row_group)))

    def iterate(self) -> Iterator[str]:
        """All texts in order, some row groups read ahead; empty ones where one is given up."""
        stop, ahead = self.reader_pool.stop, [self.request(number) for number in range(min(THREADS, len(self.listing)))]
        for number in range(len(self.listing)):
            try:
                yield from self.reader_pool.wait(ahead.pop(0), stop).to_pylist()
            except Unreadable as error:
                rows = self.listing[number].num_rows
                logger.error(f"{error}: given up, {rows:,} documents are empty for it")
                yield from [""] * rows
            if number + THREADS < len(self.listing):
                ahead.append(self.request(number + THREADS))

    def request(self, number: int) -> "Future[Any]":
        """Have the texts of a row group read ahead, on other threads."""
        row_group = self.listing[number]
        return self.reader_pool.read_ahead(lambda: self._load(row_group), self._what(row_group))

    def _what(self, row_group: RowGroup) -> str:
        return f"{self._where}, {row_group}"

    def _keep(self, number: int, texts: Any) -> Any:
        with self._lock:
            self._open[number] = texts
            while len(self._open) > _OPEN_GROUPS:
                self._open.popitem(last=False)
        return texts

    def _load(self, row_group: RowGroup) -> Any:
        """Read the texts of a row group, from the cache where they are there, by one attempt."""
        identity = [_VERSION, *self._version(row_group.file), row_group.group, self._formatter.key]
        key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
        return _read_ipc(self.reader_pool.cache.content(key, lambda: self._attempt(row_group), self.reader_pool.stop))

    def _version(self, file: RowGroupFile) -> list[Any]:
        """What tells the content of a file from any other, as it is now.

        Raises:
            ConfigError: it is another one than at the start.
            Refused: the file system gives an error.
        """
        if is_address(file.location):
            return [file.place, file.size, file.identity, file.content]
        try:
            state = file_state(file.location)
            if state != self._states[file.location]:
                self._compare(file)
                self._states[file.location] = state
        except OSError as error:
            raise Refused(f"{type(error).__name__}: {error}") from error
        return [file.known_content] if file.known_content else [os.path.realpath(file.location), *state]

    def _compare(self, file: RowGroupFile) -> None:
        """Compare a local file with a new time with what it was at the start; one too large for that is only told."""
        if file.known_content:
            same = self._known.hashes([file.location]) == [file.content]
        else:
            same = describe_local(file.location)["end"] == file.identity
            logger.warning(f"{file.location}: was touched or changed since the start; it is read as it is now")
        if not same:
            raise ConfigError(
                f"{self._where}: {file.location} is another file now than at the start; restore it, or start again "
                'on what is there now with checkpoint.exclude_from_loading = ["data"]'
            )

    def _attempt(self, row_group: RowGroup) -> bytes:
        try:
            columns = self._formatter.columns or self.reader_pool.store.column_names(row_group.file)
            check_columns(
                self.reader_pool.store.column_names(row_group.file), tuple(columns), f"{self._where}: {row_group.name}"
            )
            table = self.reader_pool.store.read(row_group, columns, whole=not self.by_row_group)
            location = row_group.file.location
            if location in self._states and file_state(location) != self._states[location]:
                raise Refused("was written to while it was read")
        except (pa.ArrowException, OSError) as error:  # of a local file; a network file system may be busy
            raise Refused(f"{type(error).__name__}: {' '.join(str(error).split())}") from error
        try:
            rows = to_rows(table)
        except ConfigError as error:  # bytes that are not UTF-8 may have become so on their way
            raise (Refused if is_address(row_group.file.location) else Unfit)(str(error)) from error
        try:
            texts = [format_row(self._formatter, row, f"row {number}") for number, row in enumerate(rows)]
        except ConfigError as error:
            raise Unfit(str(error)) from error
        column = pa.table({"text": pa.array(texts, pa.large_string())})
        sink = io.BytesIO()
        with pa.ipc.new_file(sink, column.schema) as writer:
            writer.write_table(column)
        return sink.getvalue()


def _count_empty(texts: Any) -> int:
    return int(pc.sum(pc.equal(pc.binary_length(texts), 0)).as_py() or 0)


def _read_ipc(content: pa.Buffer) -> Any:
    texts = pa.ipc.open_file(content).read_all().column("text").combine_chunks()
    return texts.chunk(0) if isinstance(texts, pa.ChunkedArray) else texts
