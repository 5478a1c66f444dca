"""Event files of an earlier start, to go on in."""

import struct
from pathlib import Path

from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

_HEAD = struct.Struct("<QI")
"""Length of an event and its checksum, before the event; behind it is another checksum."""


def whole_bytes(path: Path) -> int | None:
    """Bytes of a file's whole events, which a kill may have cut the last of; None where it is damaged before that."""
    at, size = 0, path.stat().st_size
    with path.open("rb") as file:
        while len(head := file.read(_HEAD.size)) == _HEAD.size:
            length, checksum = _HEAD.unpack(head)
            if masked_crc32c(head[:8]) != checksum:
                return None
            end = at + _HEAD.size + length + 4
            if end > size:
                break
            at = file.seek(end)
    return at
