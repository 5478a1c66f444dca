"""The rows of global batches, made stream by stream. No torch here: worker processes make them too."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from titan_pt.data.stream.row import PackedRow
from titan_pt.data.stream.state import ResumePoint, StreamState
from titan_pt.data.stream.stream import Stream


@dataclass(frozen=True)
class StepRows:
    """Some streams' rows of one global batch."""

    rows: list[PackedRow | None]
    """None where the stream is spent."""
    points: dict[int, ResumePoint]
    """State of each stream behind the batch, by its number."""


def make_steps(
    streams: Mapping[int, Stream], numbers: Sequence[int], stop: threading.Event | None = None
) -> Iterator[StepRows]:
    """Make global batches without end.

    Args:
        numbers: the stream of each row; every stream as often as any other, in turn.
        stop: ends the iterator where it is set.
    """
    while True:
        rows: list[PackedRow | None] = []
        before: dict[int, StreamState] = {}
        for r, s in enumerate(numbers):
            if stop is not None and stop.is_set():
                return
            if r >= len(numbers) - len(streams):  # every stream's last row of the batch
                before[s] = streams[s].state()
            rows.append(streams[s].next_row(partial=True))
        yield StepRows(rows, {s: ResumePoint(stream.state(), before[s]) for s, stream in streams.items()})
