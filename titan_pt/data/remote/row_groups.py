"""Row groups of parquet files of a fixed revision: which there are, and on which side of the held-out split."""

import itertools
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NamedTuple

import pyarrow as pa

from titan_pt.data.permutation import digest, keyed_hash
from titan_pt.run.outgoing import redact

UNKNOWN_VERSION = "listed "
_MOST_ROWS = 1 << 24
_HOLDOUT_KEY = b"titan_pt holdout units"


@dataclass(frozen=True)
class RowGroupFile:
    """One parquet file."""

    name: str
    """Path inside its dataset, or the file's own name."""
    location: str
    """Place of the file: a local path or an http(s) address."""
    size: int
    identity: str
    """Hash of a part: a remote file's footer or a local one's end. Of a file of the hub that of its content.

    The order of held-out row groups depends on it.
    """
    rows: tuple[int, ...]
    """Rows of each row group."""
    content: str = ""
    """Hash of the whole content, or what a server says of its version; empty where nothing is known.

    Of a server that says nothing, `UNKNOWN_VERSION` and a name for the moment of the listing.
    """

    @property
    def place(self) -> str:
        """The location, an address without its secrets."""
        return redact(self.location) if "://" in self.location else self.location

    @property
    def known_content(self) -> str:
        """What can be compared with another listing."""
        return "" if self.content.startswith(UNKNOWN_VERSION) else self.content


class RowGroup(NamedTuple):
    """One row group."""

    file: RowGroupFile
    group: int
    first_row: int
    """Number of its first row in the whole source."""
    num_rows: int
    name: str
    """Name of the file, or its place where several have that name."""

    def __str__(self) -> str:
        return f"{self.name}, row group {self.group}"


@dataclass(frozen=True)
class Listing:
    """All row groups of a source. Made once for a run, by rank 0, and kept: a resume reads the same files."""

    origin: str
    """Name and commit of a dataset, or the pattern of the files."""
    files: tuple[RowGroupFile, ...]
    """Empty for a dataset that is downloaded whole: only its commit is kept."""

    @property
    def commit(self) -> str:
        """Commit of a dataset of the hub."""
        return self.origin.rpartition("@")[2]

    @cached_property
    def starts(self) -> list[int]:
        """Number of each row group's first row, and the number of all rows."""
        return list(itertools.accumulate((rows for file in self.files for rows in file.rows), initial=0))

    @cached_property
    def _places(self) -> list[tuple[RowGroupFile, int]]:
        return [(file, group) for file in self.files for group in range(len(file.rows))]

    @cached_property
    def _names(self) -> Counter[str]:
        return Counter(file.name for file in self.files)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number: int) -> RowGroup:
        file, group = self._places[number]
        name = file.name if self._names[file.name] == 1 else file.place
        return RowGroup(file, group, self.starts[number], self.starts[number + 1] - self.starts[number], name)

    @property
    def num_rows(self) -> int:
        """Rows of all row groups."""
        return self.starts[-1]

    def row_group_of(self, row: int) -> int:
        """The number of the row group that holds a row."""
        return bisect_right(self.starts, row) - 1

    @cached_property
    def fingerprint(self) -> str:
        """Hash of names, contents and row groups; where the files are read does not matter."""
        return digest([self.origin, *([file.name, file.size, file.identity, file.rows] for file in self.files)])

    @cached_property
    def _ranked(self) -> list[int]:
        """The row groups in the order in which they are held out."""
        hashes = [
            keyed_hash(_HOLDOUT_KEY, f"{self.fingerprint}/{file.name}/{group}".encode()) for file, group in self._places
        ]
        return sorted(range(len(self)), key=hashes.__getitem__)

    def side(self, fraction: float, held_out: bool) -> list[int]:
        """Numbers of the row groups on one side of the held-out split; at least one is held out."""
        if fraction == 0.0:
            return [] if held_out else list(range(len(self)))
        count = max(1, round(fraction * len(self)))
        return sorted(self._ranked[:count] if held_out else self._ranked[count:])

    def to_json(self) -> dict[str, Any]:
        """The listing as plain values."""
        return {"origin": self.origin, "fingerprint": self.fingerprint, "files": [asdict(file) for file in self.files]}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Listing":
        """The listing that `to_json` wrote.

        Raises:
            ValueError: it was changed.
        """
        files = tuple(RowGroupFile(**{**file, "rows": tuple(file["rows"])}) for file in values["files"])
        listing = cls(values["origin"], files)
        if listing.fingerprint != values["fingerprint"]:
            raise ValueError(f"units of {listing.origin}: their checksum does not hold")
        return listing


def rows_of_groups(metadata: Any) -> tuple[int, ...]:
    """Rows of each row group of a parquet file.

    Raises:
        pyarrow.ArrowInvalid: more or fewer than any row group has.
    """
    found = tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
    for rows in found:
        if not 0 <= rows <= _MOST_ROWS:
            raise pa.ArrowInvalid(f"a row group has {rows:,} rows by its footer, and at most {_MOST_ROWS:,} are read")
    return found


def byte_ranges(metadata: Any, group: int, columns: Sequence[str], gap: int = 1 << 16) -> list[tuple[int, int]]:
    """(start, length) of the parts of a file that hold these columns of a row group; near ones are merged."""
    part = metadata.row_group(group)
    found = []
    for number in range(part.num_columns):
        chunk = part.column(number)
        if chunk.path_in_schema.split(".")[0] in columns:
            start = chunk.data_page_offset
            if chunk.has_dictionary_page and chunk.dictionary_page_offset:
                start = min(start, chunk.dictionary_page_offset)
            found.append((start, start + chunk.total_compressed_size))
    merged: list[list[int]] = []
    for start, end in sorted(found):
        if merged and start - merged[-1][1] <= gap:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return [(start, end - start) for start, end in merged]
