"""JSON files as rows: one object a line, or an array of objects."""

import codecs
import gzip
import itertools
from typing import IO, Any

from titan_pt.config.errors import ConfigError, one_of
from titan_pt.data.sources.local import Columns, Located
from titan_pt.run.files import MOST_BYTES, decode_text, parse_json

_LONGEST_LINE, _LONGEST_ARRAY = 2 * MOST_BYTES, 16 * MOST_BYTES  # bytes, unpacked


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


def _lines(file: IO[bytes], path: str) -> Located:
    for number in itertools.count(1):
        line = file.readline(_LONGEST_LINE + 1)
        if not line:
            return
        if len(line) > _LONGEST_LINE:
            raise ConfigError(f"{path}, line {number}: is longer than {_LONGEST_LINE:,} bytes; repair or remove it")
        if line := line.removeprefix(codecs.BOM_UTF8).strip():
            yield f"line {number}", _parsed(decode_text(line, path, number), f"{path}, line {number}")


def _array_items(file: IO[bytes], path: str) -> Located:
    content = file.read(_LONGEST_ARRAY + 1)
    if len(content) > _LONGEST_ARRAY:
        raise ConfigError(f"{path}: an array of more than {_LONGEST_ARRAY:,} bytes; write one object a line (.jsonl)")
    for number, row in enumerate(_parsed(decode_text(content, path), path)):
        yield f"item {number}", row


def _parsed(text: str, where: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise ConfigError(f"{where}: not JSON: {error}; repair or remove it") from None


def _open(path: str) -> Any:
    return gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb")
