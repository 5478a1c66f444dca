"""Footers and row groups of parquet files, local or over HTTP, of which only the needed bytes are read."""

import functools
import hashlib
import io
import itertools
import re
import threading
import uuid
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from titan_pt.data.remote.cache import SpillCache
from titan_pt.data.remote.ranges import Http
from titan_pt.data.remote.retry import Attempts, Changed, Patience, Refused, persist
from titan_pt.data.remote.row_groups import UNKNOWN_VERSION, RowGroup, RowGroupFile, byte_ranges, rows_of_groups
from titan_pt.data.sources.identity import same_content
from titan_pt.data.sources.parquet_rows import batch_rows
from titan_pt.data.sources.registry import is_address

_MAGIC = b"PAR1"
_FOOTER = "footer-"  # begins an identity that is made of the file's footer
_MOST_FOOTER_BYTES, MOST_GROUP_BYTES = 1 << 27, 1 << 33
_SMALL_BYTES, _MOST_WHOLE_BYTES = 1 << 20, 1 << 28
_END_BYTES = 1 << 16  # holds the footer of a small file; of a large one it tells the footer's size


class ParquetStore:
    """Reads parquet files; what comes over a network is retried, and footers are kept in the cache."""

    def __init__(
        self, http: Http, patience: Patience, cache: SpillCache, stop: threading.Event, *, reads_twice: bool = False
    ) -> None:
        self._http, self._patience, self._cache, self._stop = http, patience, cache, stop
        self._reads_twice = reads_twice
        self._footers = functools.lru_cache(maxsize=64)(self._read_footer)

    def describe(self, name: str, location: str, identity: str | None = None) -> RowGroupFile:
        """A remote file. Its identity is the given one, a hash of the content, or made of the footer.

        Raises:
            Unreadable, Unreachable, Stopped.
        """
        footer, size = persist(lambda: self._fetch_footer(location), self._attempts(name), self._stop)
        content = identity or self._http.versions.get(location) or f"{UNKNOWN_VERSION}{uuid.uuid4().hex}"
        identity = identity or _footer_identity(footer)
        self._cache.content(_footer_key(name, size, identity), lambda: footer, self._stop)
        return RowGroupFile(name, location, size, identity, rows_of_groups(parse_footer(footer)), content)

    def interrupt(self) -> None:
        """End all requests that are under way."""
        self._http.interrupt()

    def column_names(self, file: RowGroupFile) -> list[str]:
        """Names of the columns of a file's table."""
        return column_names(persist(lambda: self._footers(file), self._attempts(file.name), self._stop))

    def read(self, row_group: RowGroup, columns: Sequence[str], *, whole: bool = False) -> pa.Table:
        """The columns of a row group, its rows counted.

        Args:
            whole: all row groups are wanted now, so the file is read at once where its hash is known.

        Raises:
            Transient, Refused: of one attempt; `persist` makes it many.
            OSError: a local file.
        """
        file = row_group.file
        source: Any
        try:
            if is_address(file.location):
                metadata = self._footers(file)
                every = (whole or self._reads_twice) and is_read_whole(file, metadata, columns)
                source = self._whole(file) if every else None
                if source is None:
                    ranges = byte_ranges(metadata, row_group.group, columns)
                    source = _PartialFile(file.size, [(start, self._part(file, start, size)) for start, size in ranges])
                self._require_version(file)
            else:
                metadata, source = self._footers(file), file.location
            reader = pq.ParquetFile(source, metadata=metadata, pre_buffer=False, page_checksum_verification=True)
            table = _bounded_table(reader, row_group, columns)
        except (pa.ArrowException, OSError, EOFError) as error:
            if not is_address(file.location):
                raise
            self._forget_footer(file)  # the file may be another one by now, which a new footer shows
            raise Refused(f"cannot be decoded: {type(error).__name__}: {' '.join(str(error).split())}") from error
        if table.num_rows != row_group.num_rows:
            raise Refused(f"holds {table.num_rows:,} rows, not the {row_group.num_rows:,} of the listing")
        return table

    def _part(self, file: RowGroupFile, start: int, length: int) -> bytes:
        """Bytes of a file; where they are read twice, the second time in two other parts."""
        content = self._http.read(file.location, start, length, file.size)
        if self._reads_twice and content != self._again(file.location, start, length, file.size):
            raise Refused(f"bytes {start:,} to {start + length:,} were others when they were read again")
        return content

    def _again(self, location: str, start: int, length: int, size: int) -> bytes:
        first = (length + 1) // 2
        begins = self._http.read(location, start, first, size)
        return begins + (self._http.read(location, start + first, length - first, size) if length > first else b"")

    def _whole(self, file: RowGroupFile) -> pa.BufferReader:
        """A whole file whose hash is known, from the cache where it is there."""

        def fetch() -> bytes:
            content = self._http.read(file.location, 0, file.size, file.size)
            if not has_hash(content, file.identity):
                raise Refused("its bytes are not those that the hub has the hash of")
            return content

        key = hashlib.sha256(f"whole/{file.size}/{file.identity}".encode()).hexdigest()
        return pa.BufferReader(self._cache.content(key, fetch, self._stop))

    def _attempts(self, name: str) -> Attempts:
        return Attempts(f"{name}, footer", self._patience, self._patience.start_seconds)

    def _read_footer(self, file: RowGroupFile) -> Any:
        if not is_address(file.location):
            return pq.read_metadata(file.location)
        key = _footer_key(file.name, file.size, file.identity)
        try:
            return parse_footer(self._cache.content(key, lambda: self._fetch_known(file), self._stop))
        except Refused:
            self._cache.drop(key)
            raise

    def _forget_footer(self, file: RowGroupFile) -> None:
        self._cache.drop(_footer_key(file.name, file.size, file.identity))
        self._footers.cache_clear()

    def _fetch_known(self, file: RowGroupFile) -> bytes:
        """The footer of a listed file. The hub keeps what a commit holds; at an address there may be another file."""
        footer, size = self._fetch_footer(file.location)
        if size != file.size:
            raise Changed(f"has {size:,} bytes now, not the {file.size:,} of the listing")
        if file.identity.startswith(_FOOTER) and file.identity != _footer_identity(footer):
            raise Changed("is another file now than in the listing")
        self._require_version(file)
        return footer

    def _require_version(self, file: RowGroupFile) -> None:
        """Raise Changed where the server says that the last answer was of another version of a listed file."""
        if not same_content(file.known_content, self._http.versions.get(file.location, "")):
            raise Changed("is another file now than in the listing, by its ETag and Last-Modified")

    def _fetch_footer(self, location: str) -> tuple[bytes, int]:
        """The footer and the size of a remote file, by one attempt."""
        end, size = self._http.read_end(location, _END_BYTES)
        if len(end) < 12 or end[-4:] != _MAGIC:
            raise Refused("does not end as a parquet file does")
        length = int.from_bytes(end[-8:-4], "little") + 8
        if length > min(size, _MOST_FOOTER_BYTES):
            limit = "the file" if length > size else f"the {_MOST_FOOTER_BYTES:,} bytes that one may have"
            raise Refused(f"its footer is longer than {limit}")
        footer = end[-length:] if length <= len(end) else self._http.read(location, size - length, length, size)
        parse_footer(footer)
        if self._reads_twice and footer != self._again(location, size - length, length, size):
            raise Refused("its footer was another one when it was read again")
        return footer, size


def _bounded_table(reader: Any, row_group: RowGroup, columns: Sequence[str]) -> pa.Table:
    """The columns of a row group, as long as they have the promised rows and a size that a row group may have."""
    part = reader.metadata.row_group(row_group.group)
    chunks = (part.column(number) for number in range(part.num_columns))
    size = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in columns)
    batches: list[pa.RecordBatch] = []
    rows, unpacked = 0, 0
    for batch in reader.iter_batches(
        batch_rows(size), row_groups=[row_group.group], columns=list(columns), use_threads=False
    ):
        rows, unpacked = rows + batch.num_rows, unpacked + batch.nbytes
        if rows > row_group.num_rows or unpacked > MOST_GROUP_BYTES:
            raise Refused(f"unpacks to more than {row_group.num_rows:,} rows or {MOST_GROUP_BYTES:,} bytes")
        batches.append(batch)
    schema = batches[0].schema if batches else pa.schema([reader.schema_arrow.field(name) for name in columns])
    return pa.Table.from_batches(batches, schema)


def is_read_whole(file: RowGroupFile, metadata: Any, columns: Sequence[str]) -> bool:
    """Whether a file of the hub can be read whole, to compare its hash: a small one, or one of which most is wanted."""
    if file.size > _MOST_WHOLE_BYTES or re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", file.identity) is None:
        return False
    groups = range(metadata.num_row_groups)
    wanted = sum(length for group in groups for _, length in byte_ranges(metadata, group, columns, gap=0))
    return file.size <= _SMALL_BYTES or 2 * wanted >= file.size


def has_hash(content: bytes, known: str) -> bool:
    """Whether this is the content of a hash that the hub publishes: sha256 of a large file, else git's own, or sha1."""
    if len(known) == 64:
        return hashlib.sha256(content).hexdigest() == known
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    return known in (blob, hashlib.sha1(content, usedforsecurity=False).hexdigest())


def describe_local(path: str) -> dict[str, Any]:
    """Size, hash of the end, columns and row groups (each number of rows with its count) of a local file, as JSON.

    Raises:
        OSError, pyarrow.ArrowException: it is not parquet.
    """
    metadata = pq.read_metadata(path)
    with open(path, "rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - _END_BYTES))
        end = hashlib.sha256(file.read()).hexdigest()[:32]
    rows = [[count, len(list(equal))] for count, equal in itertools.groupby(rows_of_groups(metadata))]
    return {"size": size, "end": end, "rows": rows, "columns": column_names(metadata)}


def column_names(metadata: Any) -> list[str]:
    """Names of the columns of a parquet file's table."""
    schema = metadata.schema
    return list(dict.fromkeys(schema.column(i).path.split(".")[0] for i in range(len(schema))))


def _footer_identity(footer: bytes) -> str:
    return _FOOTER + hashlib.sha256(footer).hexdigest()[:32]


def _footer_key(name: str, size: int, identity: str) -> str:
    return hashlib.sha256(f"footer/{name}/{size}/{identity}".encode()).hexdigest()


def parse_footer(footer: bytes | pa.Buffer) -> Any:
    """Decode the metadata in the last bytes of a parquet file.

    Raises:
        Refused: they are damaged.
    """
    try:
        metadata = pq.read_metadata(pa.BufferReader(_MAGIC + bytes(footer)))
        rows_of_groups(metadata)
        return metadata
    except (pa.ArrowException, OSError) as error:
        raise Refused(f"its footer cannot be decoded: {error}") from error


class _PartialFile(io.RawIOBase):
    """A file-like object that holds only some pieces of a file."""

    def __init__(self, size: int, pieces: list[tuple[int, bytes]]) -> None:
        self._size, self._pieces, self._at = size, pieces, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        for start, content in self._pieces:
            if start <= self._at and self._at + size <= start + len(content):
                found = content[self._at - start : self._at - start + size]
                self._at += size
                return found
        raise OSError(f"bytes {self._at} to {self._at + size} were not fetched")
