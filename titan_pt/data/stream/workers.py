"""The rows of streams, made in this process or tokenised ahead by others; the same rows in the same order."""

import importlib
import multiprocessing
import pickle
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from titan_pt.components.tokenizer import build_tokenizer
from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.data.sources.mixture import build_corpus, data_folder
from titan_pt.data.stream.encoding import Encoder
from titan_pt.data.stream.skip_log import SkipLog
from titan_pt.data.stream.stream import Row, Stream
from titan_pt.run.log import init_logging
from titan_pt.run.signals import die_with_parent, ignore_signals

Step = tuple[list[Row | None], dict[str, Any]]
"""The rows of one global batch that some streams give, None of a spent one, and the streams' states after it."""

_POLL_SECONDS = 0.2


def make_steps(streams: Mapping[int, Stream], numbers: Sequence[int], stop: threading.Event | None) -> Iterator[Step]:
    """Global batches without end.

    Args:
        numbers: the stream of each row; every stream as often as any other, in turn.
    """
    while True:
        rows: list[Row | None] = []
        before = {}
        for r, s in enumerate(numbers):
            if stop is not None and stop.is_set():
                return
            if r >= len(numbers) - len(streams):  # every stream's last row of the batch
                before[s] = streams[s].state_dict()
            rows.append(streams[s].next_row(partial=True))
        yield rows, {str(s): {**stream.state_dict(), "before": before[s]} for s, stream in streams.items()}


class WorkerDied(RuntimeError):
    """A worker process is gone without a word: killed, as a rule for want of memory."""


@dataclass(frozen=True)
class WorkerJob:
    """What a worker needs to make its rows; all of it can be sent to another process."""

    config: JobConfig
    encoder: Encoder
    listings: dict[str, dict[str, Any] | None]
    num_streams: int
    states: dict[str, Any]
    """Of its streams, by number; a stream's state is that of `DataLoader.state_dict`."""
    numbers: list[int]
    writer: str
    fingerprints: dict[str, str]
    """The documents that it must find."""


class WorkerPool:
    """Processes that each make the rows of some streams, a few global batches ahead."""

    def __init__(self, jobs: Sequence[WorkerJob], ahead: int) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would inherit threads and devices
        self._jobs, self._connections, self._processes = list(jobs), [], []
        for job in jobs:
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(theirs, job), daemon=True, name=f"data-{job.writer}")
            process.start()
            theirs.close()
            for _ in range(1 + ahead):
                ours.send(None)
            self._connections.append(ours)
            self._processes.append(process)

    def steps(self, numbers: Sequence[int], stop: threading.Event) -> Iterator[Step]:
        """Global batches, put together from all workers' parts.

        Raises:
            WorkerDied: a worker did.
            Exception: what a worker raised; one that cannot be sent comes as a RuntimeError.
        """
        while not stop.is_set():
            waiting: dict[int, list[Row | None]] = {}
            states: dict[str, Any] = {}
            for job, connection in zip(self._jobs, self._connections, strict=True):
                part = self._receive(connection, stop)
                if part is None:
                    return
                rows, state = part
                states |= state
                for s, row in zip(job.numbers, rows, strict=True):
                    waiting.setdefault(s, []).append(row)
            yield [waiting[s].pop(0) for s in numbers], {s: states[s] for s in sorted(states, key=int)}

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()  # what they have under way is thrown away
        for process, connection in zip(self._processes, self._connections, strict=True):
            process.join()
            connection.close()

    def _receive(self, connection: Connection, stop: threading.Event) -> Step | None:
        try:
            while not connection.poll(_POLL_SECONDS):
                if stop.is_set():
                    return None
            part = connection.recv()
            connection.send(None)
        except (EOFError, OSError):
            if stop.is_set():
                return None
            raise WorkerDied("a data worker was killed; was it out of memory?") from None
        if isinstance(part, BaseException):
            raise part
        return part


def work(connection: Connection, job: WorkerJob) -> None:
    """A worker's life: a global batch for every message, until the loader ends it."""
    ignore_signals()  # the trainer decides
    die_with_parent(signal.SIGKILL)  # it must not outlive a killed trainer
    init_logging()
    try:
        streams = _open_streams(job)
        for part in make_steps(streams, job.numbers, None):
            connection.recv()
            connection.send(part)
    except (EOFError, OSError):
        return
    except Exception as error:
        connection.send(_sendable(error))


def _sendable(error: Exception) -> Exception:
    try:
        if type(pickle.loads(pickle.dumps(error))) is type(error):
            return error
    except Exception:  # a class of the user's, which may do anything
        pass
    return RuntimeError(f"{type(error).__name__}: {error}")


def _open_streams(job: WorkerJob) -> dict[int, Stream]:
    config = job.config
    if config.experimental.custom_import:
        importlib.import_module(config.experimental.custom_import)
    ledger = SkipLog(data_folder(config), job.writer)
    corpus = build_corpus(config, job.listings, build_tokenizer(config.tokenizer), job.num_streams, ledger, job.encoder)
    found = {source.name: source.documents.fingerprint for source in corpus.sources}
    if found != job.fingerprints:
        raise ConfigError("data: a worker finds other documents than its trainer; the files have just changed")
    for source in corpus.sources:
        source.wait_for_ever()
    streams = {}
    for s, state in job.states.items():
        streams[int(s)] = Stream(corpus, int(s), job.num_streams, config.training.seq_len)
        streams[int(s)].repeat_last_row(state)
    return streams
