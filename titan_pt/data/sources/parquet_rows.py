"""Parquet files as rows, and the check of a table's columns."""

import itertools
from collections.abc import Sequence

import pyarrow.parquet

from titan_pt.config.errors import ConfigError, one_of
from titan_pt.data.sources.local import Columns, Located


def read(path: str, columns: Columns) -> Located:
    """The rows of a file."""
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
