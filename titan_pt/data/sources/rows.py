"""Rows of local files with their places, for what is not texts to train on."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from titan_pt.data.sources.local import Columns, reader_of, reading


def read_rows(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place in the file, row) of a file of objects or table rows.

    Raises:
        ConfigError: the file or a row of it is not what its kind promises.
    """
    with reading(path):
        yield from reader_of(path)(path, ())


def place_of(files: Sequence[str], columns: Columns, number: int) -> str:
    """File of a document and its place there; documents count from 0 over all files, which are read again for it."""
    places = (f"{path}, {place}" for path in files for place, _ in reader_of(path)(path, columns))
    return next(itertools.islice(places, number, None))
