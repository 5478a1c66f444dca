"""Explains why bytes are not the text of a file. Imported where there are such."""

import codecs

_MARKS = {  # the longer first: UTF-32's little-endian mark begins as UTF-16's does
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def explain(content: bytes, line: int, before: int, mark: int) -> str:
    """The line and the byte of the first fault, and what is there.

    Args:
        line: number of the content's first line in the file.
        before: bytes of that line before the content.
        mark: bytes of UTF-8's own mark at its beginning.
    """
    try:
        text = content[mark:].decode()
        at, why = len(text[: text.index("\0")].encode()) + mark, "is NUL, as in UTF-16 and in files that are no text"
    except UnicodeDecodeError as error:
        at, why = error.start + mark, "is not UTF-8"
    begins = line == 1 and before == 0
    found = next((kind for mark, kind in _MARKS.items() if begins and content.startswith(mark)), None)
    why = f"the file is {found}, not UTF-8" if found else f"byte 0x{content[at]:02x} {why}"
    newlines = content.count(b"\n", 0, at)
    column = at - content.rfind(b"\n", 0, at) + (0 if newlines else before)
    return f"line {line + newlines}, byte {column}: {why}"
