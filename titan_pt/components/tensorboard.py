"""TensorBoard's record of a run: one file of events over all restarts."""

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from titan_pt.run.records import AppendedFile, Record

# TorchTitan's TensorBoard names; every other key keeps its own.
TENSORBOARD_TAGS = {
    "loss": "loss_metrics/global_avg_loss",
    "mfu": "mfu(%)",
    "step_seconds": "time_metrics/end_to_end(s)",
    "data_seconds": "time_metrics/data_loading(s)",
    "memory_gib": "memory/max_active(GiB)",
    "tokens_seen": "n_tokens_seen",
    "val_loss": "validation_metrics/loss",
    "val_bpb": "validation_metrics/bits_per_byte",
    "val_perplexity": "validation_metrics/perplexity",
}
_NOT_PLOTTED = ("step", "time", "tokens_per_second")


class EventLog:
    """Scalars and texts by step. Those of `first_step` and later that were written before are dropped.

    torch's SummaryWriter makes a file a start, and after one failed write it never writes again.
    """

    def __init__(self, folder: Path, first_step: int, world_size: int) -> None:
        self._folder, self._world_size = folder, world_size
        self._record = Record("TensorBoard")
        self._file: AppendedFile
        start = Event(step=first_step, session_log=SessionLog(status=SessionLog.START))
        self._record.write("the start of TensorBoard's record", 0, lambda: self._open(_record_of(start)))

    def write(self, row: Mapping[str, Any]) -> None:
        """Add a row of metrics.jsonl."""
        values = plotted(row, self._world_size).items()
        self._add([Summary.Value(tag=tag, simple_value=value) for tag, value in values], row["step"])

    def write_texts(self, texts: Mapping[str, str], step: int) -> None:
        """Add texts of a step by their names."""
        from titan_pt.components.event_files import text_value

        self._add([text_value(tag, text) for tag, text in texts.items()], step)

    def close(self) -> None:
        """Try a last time to write what is kept."""
        self._record.close()

    def _add(self, values: list[Summary.Value], step: int) -> None:
        content = _record_of(Event(step=step, summary=Summary(value=values)))
        self._record.write(f"TensorBoard's step {step}", len(content), lambda: self._file.append(content))

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


def plotted(row: Mapping[str, Any], world_size: int) -> dict[str, float]:
    """A row of metrics.jsonl by TorchTitan's names, without what is not to be plotted."""
    values = {TENSORBOARD_TAGS.get(key, key): value for key, value in row.items() if key not in _NOT_PLOTTED}
    if row.get("mfu") is not None:
        values["mfu(%)"] = 100 * row["mfu"]
    if "loss" in row:  # not the row before training
        values["throughput(tps)"] = row["tokens_per_second"] / world_size
        values["time_metrics/data_loading(%)"] = 100 * row["data_seconds"] / max(row["step_seconds"], 1e-9)
    return {tag: value for tag, value in values.items() if value is not None}


def _record_of(event: Event) -> bytes:
    event.wall_time = time.time()
    content = event.SerializeToString()
    length = struct.pack("<Q", len(content))
    return length + struct.pack("<I", masked_crc32c(length)) + content + struct.pack("<I", masked_crc32c(content))
