"""What few starts do with TensorBoard's files: go on in those of an earlier start, and add texts."""

import struct
from pathlib import Path

from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from titan_pt.run.secrets import fenced

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


def text_value(tag: str, text: str) -> Summary.Value:
    """A text for TensorBoard, which reads it as Markdown."""
    plugin = SummaryMetadata.PluginData(plugin_name="text")
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
    content = fenced(text).encode(errors="replace")
    tensor = TensorProto(dtype="DT_STRING", string_val=[content], tensor_shape=shape)
    return Summary.Value(tag=f"{tag}/text_summary", metadata=SummaryMetadata(plugin_data=plugin), tensor=tensor)
