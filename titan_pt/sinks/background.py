"""A sink behind a queue and a thread: it may raise, wait or hang, and the run does not."""

import logging
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any

from titan_pt.protocols.plugins import reason
from titan_pt.run.records import Record
from titan_pt.sinks import Sink, SinkContext

logger = logging.getLogger("titan_pt")

CLOSE_SECONDS = 20.0
"""How long the end of a run waits for a sink."""
_MOST_WAITING = 10_000
"""Rows and texts that wait for a sink; further ones are lost."""


class BackgroundSink(Sink):
    """Builds and feeds a sink in a thread.

    OSErrors follow the rule of `run/records.py`: the row is kept and tried again. Any other error loses its row, and
    the first one is told with its line.
    """

    def __init__(self, name: str, build: Callable[[SinkContext], Sink], context: SinkContext) -> None:
        self._name, self._lost, self._failed = f'sink "{name}"', 0, False
        self._sink: Sink | None = None
        self._waiting: queue.Queue[tuple[str, int, Callable[[Sink], None]] | None] = queue.Queue(_MOST_WAITING)
        self._thread = threading.Thread(target=self._feed, args=(build, context), name=self._name, daemon=True)
        self._thread.start()

    def write(self, row: Mapping[str, Any]) -> None:
        row = dict(row)
        self._put(f"the row of step {row['step']}", len(repr(row)), lambda sink: sink.write(row))

    def write_texts(self, texts: Mapping[str, str], step: int) -> None:
        texts = dict(texts)
        size = sum(map(len, texts.values()))
        self._put(f"the texts of step {step}", size, lambda sink: sink.write_texts(texts, step))

    def close(self) -> None:
        """Let the sink take what waits and close it, for a while at most."""
        try:
            self._waiting.put_nowait(None)
        except queue.Full:
            self._lost += 1
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            self._lost += self._waiting.qsize()
            logger.error(f"{self._name} hangs: the run ends without it")
        if self._lost:
            logger.error(f"{self._name} did not get {self._lost} rows or texts; metrics.jsonl has every row")

    def _put(self, what: str, size: int, action: Callable[[Sink], None]) -> None:
        try:
            self._waiting.put_nowait((what, size, action))
        except queue.Full:
            if not self._lost:
                logger.error(f"{self._name} hangs: {what} and what follows do not reach it; training goes on")
            self._lost += 1

    def _feed(self, build: Callable[[SinkContext], Sink], context: SinkContext) -> None:
        record = Record(self._name)

        def start() -> None:
            self._sink = build(context)

        record.write(f"{self._name}: its start", 0, lambda: self._try(start))
        while (entry := self._waiting.get()) is not None:
            what, size, action = entry
            record.write(f"{self._name}: {what}", size, lambda action=action: self._try(self._give, action))  # type: ignore[misc]
        record.close()
        if self._sink is not None:
            try:
                self._try(self._sink.close)
            except OSError as error:
                logger.error(f"{self._name} could not be closed: {reason(error)}")

    def _give(self, action: Callable[[Sink], None]) -> None:
        if self._sink is None:  # its start failed
            self._lost += 1
        else:
            action(self._sink)

    def _try(self, action: Callable[..., None], *arguments: Any) -> None:
        """Do something of the sink's; only an OSError comes out of it."""
        try:
            action(*arguments)
        except OSError:
            raise
        except BaseException as error:  # a user's module may raise anything
            self._lost += 1
            if not self._failed:
                logger.error(f"{self._name} failed: {reason(error)}; training goes on")
            self._failed = True
