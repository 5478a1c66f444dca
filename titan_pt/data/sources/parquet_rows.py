"""Parquet files as rows, and the check of a table's columns."""

from collections.abc import Sequence
from typing import Any

import pyarrow.parquet

from titan_pt.config.errors import ConfigError, one_of
from titan_pt.data.sources.local import Columns, Located


def read(path: str, columns: Columns) -> Located:
    """The rows of a file."""
    file = pyarrow.parquet.ParquetFile(path, page_checksum_verification=True)  # where the file has any
    check_columns(file.schema_arrow.names, columns, path)
    first, groups = 0, range(file.metadata.num_row_groups)
    size = max((file.metadata.row_group(group).total_byte_size for group in groups), default=0)
    for batch in file.iter_batches(batch_size=min(256, batch_rows(size)), columns=list(columns) or None):
        for row in to_rows(batch, f"{path}, ", first):
            yield f"row {first}", row
            first += 1


def batch_rows(size: int) -> int:
    """Rows to decode at once of a row group of an unpacked size: each may hold the longest value of its dictionary."""
    return max(1, min(1024, (2 << 30) // max(size, 1)))


def check_columns(names: Sequence[str], columns: Columns, path: str) -> None:
    """Raise a ConfigError unless a table has all columns, each once; none named: whatever it has."""
    twice = [name for name in columns or names if names.count(name) > 1]
    if twice:
        raise ConfigError(f"{path}: has several columns {twice[0]!r}; rename all but one")
    for column in columns:
        if column not in names:
            raise ConfigError(f"{path}: no column {column!r}; it has {one_of(names)}; set text_field")


def to_rows(table: Any, where: str = "", first: int = 0) -> list[dict[str, Any]]:
    """The rows of a table or batch.

    Args:
        where: begins the place of a row in a message.
        first: number of the first row.

    Raises:
        ConfigError: a text is not UTF-8, which some writers do not check.
    """
    try:
        rows: list[dict[str, Any]] = table.to_pylist()
    except UnicodeDecodeError:
        for number in range(table.num_rows):
            for name in table.column_names:
                try:
                    table.column(name)[number].as_py()
                except UnicodeDecodeError as error:
                    byte = f"byte 0x{error.object[error.start]:02x} at {error.start}"
                    raise ConfigError(
                        f"{where}row {first + number}: {name!r} is not UTF-8: {byte}; repair or remove it"
                    ) from None
        raise
    return rows
