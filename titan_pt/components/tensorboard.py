"""TensorBoard's record of a run: one file of events over all restarts."""

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from titan_pt.run.records import AppendedFile, Record


class EventLog:
    """Scalars and texts by step. Those of `first_step` and later that were written before are dropped.

    torch's SummaryWriter makes a file a start, and after one failed write it never writes again.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        self._folder = folder
        self._record = Record("TensorBoard")
        self._file: AppendedFile
        start = Event(step=first_step, session_log=SessionLog(status=SessionLog.START))
        self._record.write("the start of TensorBoard's record", 0, lambda: self._open(_record_of(start)))

    def add(self, values: Mapping[str, float], texts: Mapping[str, str], step: int) -> None:
        """Add the scalars and the texts, in Markdown, of a step."""
        found = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        found += [_text(tag, text) for tag, text in texts.items()]
        if found:
            content = _record_of(Event(step=step, summary=Summary(value=found)))
            self._record.write(f"TensorBoard's step {step}", len(content), lambda: self._file.append(content))

    def close(self) -> None:
        """Try a last time to write what is kept."""
        self._record.close()

    def _open(self, start: bytes) -> None:
        """Go on in the newest file, behind its last whole event; in a new one where there is none, or it is damaged."""
        files = sorted(self._folder.glob("events.out.tfevents.*"))
        whole: int | None = None
        if files:
            from titan_pt.components.event_files import whole_bytes

            whole = whole_bytes(files[-1])
        name = f"events.out.tfevents.{int(time.time()):010}.{socket.gethostname()}.{os.getpid()}.{len(files)}"
        version = _record_of(Event(file_version="brain.Event:2"))
        self._file = AppendedFile(self._folder / name if whole is None else files[-1], version, syncs=False)
        self._file.size = whole
        self._file.append(start)


def _text(tag: str, text: str) -> Summary.Value:
    plugin = SummaryMetadata.PluginData(plugin_name="text")
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
    tensor = TensorProto(dtype="DT_STRING", string_val=[text.encode(errors="replace")], tensor_shape=shape)
    return Summary.Value(tag=f"{tag}/text_summary", metadata=SummaryMetadata(plugin_data=plugin), tensor=tensor)


def _record_of(event: Event) -> bytes:
    event.wall_time = time.time()
    content = event.SerializeToString()
    length = struct.pack("<Q", len(content))
    return length + struct.pack("<I", masked_crc32c(length)) + content + struct.pack("<I", masked_crc32c(content))
