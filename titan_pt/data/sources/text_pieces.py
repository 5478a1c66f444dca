"""A text file as documents: pieces that end at a blank line where there is one."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from titan_pt.config.errors import ConfigError
from titan_pt.data.sources.local import Columns, Located, row_kinds
from titan_pt.run.files import read_blocks

# A file is cut into documents of this many characters, or up to twice as many to end at a blank line.
TEXT_DOCUMENT_CHARACTERS = 4000


def read(path: str, columns: Columns) -> Located:
    """The pieces of a file, as rows of the one column "text"."""
    if not columns:
        raise ConfigError(f"{path}: a text file has no rows; known are {row_kinds()}")
    if columns != ("text",):
        raise ConfigError(f"{path}: no column {columns[0]!r}; a text file has no columns, so leave text_field out")
    for number, piece in enumerate(cut_text(read_blocks(Path(path))), 1):
        yield f"piece {number}", {"text": piece}


def cut_text(blocks: Iterable[str]) -> Iterator[str]:
    """Pieces of a text of any length that end at a blank line, else a line, else a word; joined they are the text."""
    rest = ""
    for block in blocks:
        rest += block
        start = 0
        while len(rest) - start > 2 * TEXT_DOCUMENT_CHARACTERS:
            end = _end_of_piece(rest, start + TEXT_DOCUMENT_CHARACTERS, start + 2 * TEXT_DOCUMENT_CHARACTERS)
            yield rest[start:end]
            start = end
        rest = rest[start:]
    if rest:
        yield rest


def _end_of_piece(text: str, least: int, most: int) -> int:
    for separator in ("\n\n", "\n", " "):
        at = text.find(separator, least, most)
        if at >= 0:
            return at + len(separator)
    return most
