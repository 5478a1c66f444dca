"""Texts that are read, and files that a run writes: flushed to the disk, never half there.

Every text is UTF-8 whatever the locale: a mark at its beginning is dropped, its lines end at \\n or \\r\\n alone.
"""

import codecs
import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from titan_pt.config.errors import ConfigError

_BLOCK_BYTES = 1 << 20
MOST_BYTES = 1 << 27
"""Size of a file that is read whole: tokenizers and indexes have a tenth of it."""


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """The content of a file, at most `most` bytes, however long the file says it is.

    Raises:
        ConfigError: it is larger.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ConfigError(f"{path}: is larger than the {most:,} bytes that are read of such a file")
    return content


def read_text(path: Path, most: int = MOST_BYTES) -> str:
    """The text of a file. Raises as `read_bytes` does, and a ConfigError with line and byte where it is not UTF-8."""
    return decode_text(read_bytes(path, most), str(path))


def parse_json(text: str | bytes) -> Any:
    """A value of JSON that somebody else wrote, or that a crash may have damaged.

    Raises:
        ValueError: it is not JSON, nested too deeply, or has a number of thousands of digits.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_blocks(path: Path) -> Iterator[str]:
    """The text of a file of any size in blocks of about a megabyte. Raises as `read_text` does."""
    with path.open("rb") as file:
        rest, line, before = b"", 1, 0
        while block := file.read(_BLOCK_BYTES):
            content = rest + block
            cut = content.rfind(b"\n") + 1 or _whole(content)
            yield decode_text(content[:cut], str(path), line, before)
            if cut and content[cut - 1] == 0x0A:
                line, before = line + content.count(b"\n", 0, cut), 0
            else:
                before += cut
            rest = content[cut:]
        yield decode_text(rest, str(path), line, before)


def _whole(content: bytes) -> int:
    """Where to cut bytes without a line's end: between characters, and not between \\r and what may be its \\n."""
    cut = max(len(content) - 4, 0)
    for _ in range(3):
        cut -= bool(cut and content[cut] & 0xC0 == 0x80)
    return cut - 1 if cut and content[cut - 1] == 0x0D else cut


def decode_text(content: bytes, name: str, line: int = 1, before: int = 0) -> str:
    """Bytes of a file as text.

    Args:
        name: of the file, for the message.
        line: number of their first line in the file.
        before: bytes of that line before these.

    Raises:
        ConfigError: they are not UTF-8; names the line and the byte.
    """
    begins = line == 1 and before == 0
    mark = len(codecs.BOM_UTF8) if begins and content.startswith(codecs.BOM_UTF8) else 0
    with contextlib.suppress(UnicodeDecodeError):
        text = content[mark:].decode()
        if "\0" not in text:
            return text.replace("\r\n", "\n")
    from titan_pt.run.undecodable import explain

    raise ConfigError(f"{name}, {explain(content, line, before, mark)}; convert it to UTF-8")


def make_writable(folder: Path, name: str) -> None:
    """Make the folder and check that files can be made in it.

    Args:
        name: the setting that names the folder, for the message.

    Raises:
        ConfigError: it cannot be written to; CannotStart where that may pass, as a full disk may.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        from titan_pt.run.unwritable import unwritable

        raise unwritable(name, error, "name another folder, such as one below your home") from None


def write_atomic(path: Path, text: str, mark: str = "") -> None:
    """Replace a text file; whoever reads it meanwhile, or after a crash, finds the old text or the new one.

    The text is flushed to `NAME<mark>.tmp` and renamed; processes that write the same file need a mark each.
    """
    temporary = path.with_name(f"{path.name}{mark}.tmp")
    try:
        write_text(temporary, text)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()  # the part that was written takes the room of what comes next
        raise


def write_json(path: Path, content: Any, indent: int | None = None) -> None:
    """Write a value as JSON and flush the file to the disk."""
    write_text(path, json.dumps(content, indent=indent))


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8 and flush the file to the disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flush the names of a folder's files to the disk: without that, a crash can lose a new or renamed file."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
