"""JSON files as rows: one object a line, or an array of objects."""

import codecs
import gzip
import json
from collections.abc import Iterable
from typing import IO, Any

from titan_pt.config.errors import ConfigError, one_of
from titan_pt.data.sources.local import Columns, Located
from titan_pt.run.files import decode_text


def read(path: str, columns: Columns) -> Located:
    """Rows of a file: one object a line, or an array of objects."""
    with _open(path) as file:
        is_array = file.read(100).lstrip(codecs.BOM_UTF8 + b" \t\r\n").startswith(b"[")
        file.seek(0)
        rows = _array_items(file, path) if is_array else _lines(file, path)
        for place, row in rows:
            if not isinstance(row, dict):
                raise ConfigError(f"{path}, {place}: is {type(row).__name__}, not an object; repair or remove it")
            for column in columns:
                if column not in row:
                    raise ConfigError(f"{path}, {place}: no {column!r}; it has {one_of(row)}; set text_field")
            yield place, row


def _lines(file: Iterable[bytes], path: str) -> Located:
    for number, line in enumerate(file, 1):
        if line := line.removeprefix(codecs.BOM_UTF8).strip():
            yield f"line {number}", _parsed(decode_text(line, path, number), f"{path}, line {number}")


def _array_items(file: IO[bytes], path: str) -> Located:
    for number, row in enumerate(_parsed(decode_text(file.read(), path), path)):
        yield f"item {number}", row


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # not JSON, a number of thousands of digits
        raise ConfigError(f"{where}: not JSON: {error}; repair or remove it") from None


def _open(path: str) -> Any:
    return gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb")
