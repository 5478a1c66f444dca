"""Rows made ahead by other processes, with data.num_workers > 0: the rows of `steps.py`, in the same order."""

import logging
import math
import multiprocessing
import pickle
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

from titan_pt.components.tokenizer import build_tokenizer
from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.job_config import JobConfig, TokenizerSection
from titan_pt.data.sources.opening import Listings, data_settings, open_all
from titan_pt.data.sources.registry import DataSettings, SourceContext
from titan_pt.data.stream.encoding import Encoder
from titan_pt.data.stream.mixture import TokenizedMixture, tokenize_mixture
from titan_pt.data.stream.resuming import resume
from titan_pt.data.stream.row import PackedRow
from titan_pt.data.stream.state import ResumePoint
from titan_pt.data.stream.steps import StepRows, make_steps
from titan_pt.data.stream.stream import Stream
from titan_pt.protocols.plugins import import_plugin
from titan_pt.run.log import init_logging
from titan_pt.run.parents import die_with_parent
from titan_pt.run.signals import ignore_signals

logger = logging.getLogger("titan_pt")

_POLL_SECONDS, _LOOK_SECONDS = 0.2, 1.0
_MOST_DEATHS, _MOST_STARTS = 3, 10  # of workers, without a batch in between
_TOGETHER_SECONDS = 10.0  # deaths after one that count with it: what kills one process seldom kills one alone


class WorkerDied(RuntimeError):
    """A worker process is gone without a word, killed as a rule for want of memory."""


@dataclass(frozen=True)
class WorkerJob:
    """Everything that a worker needs to make its rows; it can be sent to another process."""

    settings: DataSettings
    seq_len: int
    tokenizer: TokenizerSection
    custom_import: str
    encoder: Encoder
    listings: Listings
    fingerprints: dict[str, str]
    """Fingerprint of each source's documents, which the worker must find too."""
    points: Mapping[int, ResumePoint]
    """Where each of its streams goes on, by its number."""
    numbers: Sequence[int]
    """The stream of each of its rows of a global batch."""
    writer: str
    """Name of its record of skipped row groups."""


def worker_steps(
    mixture: TokenizedMixture,
    config: JobConfig,
    num_streams: int,
    numbers: Sequence[int],
    points: Mapping[int, ResumePoint],
    stop: threading.Event,
) -> Iterator[StepRows]:
    """Global batches made by worker processes. A killed one is replaced, unless that happens again and again.

    Args:
        numbers: the stream of each of the rank's rows.
        points: where the rank's streams go on.

    Raises:
        WorkerDied: workers were killed several times, some time apart, without a batch in between.
    """
    whole = WorkerJob(
        settings=data_settings(config, num_streams),
        seq_len=config.training.seq_len,
        tokenizer=config.tokenizer,
        custom_import=config.experimental.custom_import,
        encoder=mixture.encoder,
        listings=Listings({source.name: source.listing for source in mixture.sources}, {}),
        fingerprints={source.name: source.documents.fingerprint for source in mixture.sources},
        points=points,
        numbers=numbers,
        writer=mixture.skip.writer,
    )
    deaths, starts, counted = 0, 0, -math.inf
    while not stop.is_set():
        pool = WorkerPool(split(replace(whole, points=points), config.data.num_workers), config.data.prefetch_steps)
        try:
            for step in pool.steps(numbers, stop):
                deaths, starts, counted, points = 0, 0, -math.inf, step.points
                yield step
        except WorkerDied as error:
            starts += 1
            if time.monotonic() > counted + _TOGETHER_SECONDS:
                deaths, counted = deaths + 1, time.monotonic()
            if deaths == _MOST_DEATHS or starts == _MOST_STARTS:
                raise
            logger.warning(f"{error} Others go on where it was")
        finally:
            pool.close()


def split(job: WorkerJob, num_workers: int) -> list[WorkerJob]:
    """Deal the streams of a job to workers, at least one stream to each."""
    count = min(num_workers, len(job.points))
    owned = [[s for i, s in enumerate(job.points) if i % count == w] for w in range(count)]
    return [
        replace(
            job,
            points={s: job.points[s] for s in own},
            numbers=[s for s in job.numbers if s in own],
            writer=f"{job.writer}-worker{w}",
        )
        for w, own in enumerate(owned)
    ]


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
        self._closed = threading.Event()
        threading.Thread(target=self._end_stopped, name="data-workers", daemon=True).start()

    def steps(self, numbers: Sequence[int], stop: threading.Event) -> Iterator[StepRows]:
        """Global batches, put together from all workers' parts.

        Raises:
            WorkerDied: a worker did.
            Exception: whatever a worker raised; one that cannot be sent comes as a RuntimeError.
        """
        while not stop.is_set():
            waiting: dict[int, list[PackedRow | None]] = {}
            points: dict[int, ResumePoint] = {}
            for job, connection in zip(self._jobs, self._connections, strict=True):
                part = self._receive(connection, stop)
                if part is None:
                    return
                points |= part.points
                for s, row in zip(job.numbers, part.rows, strict=True):
                    waiting.setdefault(s, []).append(row)
            yield StepRows([waiting[s].pop(0) for s in numbers], {s: points[s] for s in sorted(points)})

    def close(self) -> None:
        """End the processes."""
        self._closed.set()
        for process in self._processes:
            process.kill()  # what they have under way is thrown away
        for process, connection in zip(self._processes, self._connections, strict=True):
            process.join()
            connection.close()

    def _end_stopped(self) -> None:
        """In a thread, since a worker that was stopped in the middle of a message holds up who reads it."""
        before = set[int | None]()
        while not self._closed.wait(_LOOK_SECONDS):
            stopped = {process.pid for process in self._processes if _is_stopped(process.pid)}
            for process in self._processes:
                if process.pid in stopped & before:  # not in the moment in which a shell lets all of them go on
                    logger.warning("A data worker was stopped by a signal; it is ended")
                    process.kill()
            before = stopped

    def _receive(self, connection: Connection, stop: threading.Event) -> StepRows | None:
        try:
            while not connection.poll(_POLL_SECONDS):
                if stop.is_set():
                    return None
            part: StepRows | BaseException = connection.recv()
            connection.send(None)
        except (EOFError, OSError):
            if stop.is_set():
                return None
            raise WorkerDied("a data worker was killed; was it out of memory?") from None
        if isinstance(part, BaseException):
            raise part
        return part


def _is_stopped(pid: int | None) -> bool:
    """Whether somebody stopped this process, which may never go on; on Linux, where the kernel tells it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except (OSError, IndexError):
        return False


def work(connection: Connection, job: WorkerJob) -> None:
    """Main function of a worker process: a global batch for every message, until the loader ends it."""
    ignore_signals()  # the trainer decides
    die_with_parent(signal.SIGKILL)  # it must not outlive a killed trainer
    init_logging()
    try:
        streams = _open_streams(job)
        for part in make_steps(streams, job.numbers):
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
    if job.custom_import:
        import_plugin(job.custom_import, "experimental.custom_import")
    sources = open_all(job.settings.data.sources, job.listings, SourceContext(job.settings))
    mixture = tokenize_mixture(sources, job.settings, build_tokenizer(job.tokenizer), job.writer, job.encoder)
    if {source.name: source.documents.fingerprint for source in sources} != job.fingerprints:
        raise ConfigError("data: a worker finds other documents than its trainer; the files have just changed")
    for source in sources:
        source.wait_for_ever()
    streams = {s: Stream(mixture, s, job.settings.num_streams, job.seq_len) for s in job.points}
    for s, stream in streams.items():
        resume(stream, job.points[s])
    return streams
