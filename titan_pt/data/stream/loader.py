"""Global batches of packed rows, prepared ahead, with the state that belongs to each.

Row r of every global batch comes from stream r mod S, and rank k of W owns streams [k S/W, (k+1) S/W): the documents
of a step do not depend on the number of ranks, nor on the split into micro-batches.
"""

import atexit
import functools
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

from torchdata.nodes import IterableWrapper, Prefetcher

from titan_pt.components.tokenizer import Tokenizer
from titan_pt.config.run_size import RunSize
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.data.remote.reader_pool import ReaderPool
from titan_pt.data.remote.row_group_documents import RowGroupDocuments
from titan_pt.data.sources.mixture import as_corpus, data_folder, open_mixture, sendable
from titan_pt.data.stream.batch import StepBatch, collate
from titan_pt.data.stream.encoding import PLAIN_TEXT, Encoder
from titan_pt.data.stream.mixture import TokenizedMixture
from titan_pt.data.stream.order import BLOCK_ROWS
from titan_pt.data.stream.prefetch import End, TimedPrefetcher, with_errors
from titan_pt.data.stream.skip_log import SkipLog
from titan_pt.data.stream.stream import Stream, padding_row, token_hash
from titan_pt.data.stream.workers import Step, WorkerDied, WorkerJob, WorkerPool, make_steps
from titan_pt.distributed.world import World
from titan_pt.run.exit_codes import Preempted, Stalled
from titan_pt.run.signals import stop_requested

logger = logging.getLogger("titan_pt")

_POLL_SECONDS = 1.0
_FIRST_STALL_SECONDS = 10.0
_MOST_DEATHS = 3  # of workers, without a batch in between


class DataLoader:
    """Endless (or until the sources are spent) sequence of this rank's StepBatches.

    `state_dict` is that of the last batch passed to `commit`: a batch that is prepared but not trained on leaves no
    trace, so that a resume repeats and loses nothing.

    Finite sources end in one stream earlier than in another. A stream without documents then gives rows without
    targets, until the last stream of the last rank has none left.
    """

    def __init__(self, corpus: TokenizedMixture, run_size: RunSize, world: World, config: JobConfig) -> None:
        self._run_size, self._seq_len = run_size, config.training.seq_len
        self._local_batch_size = config.training.local_batch_size
        self._prefetch_steps, self._pin = config.data.prefetch_steps, world.device.type == "cuda"
        self._max_stall_seconds = config.data.max_stall_seconds
        self._world, self._config, self.corpus = world, config, corpus
        owned = run_size.num_streams // world.size
        first = world.rank * owned
        self._streams = {s: Stream(corpus, s, run_size.num_streams, self._seq_len) for s in range(first, first + owned)}
        self._committed: dict[str, Any] = {
            str(s): {**stream.state_dict(), "before": None} for s, stream in self._streams.items()
        }
        self.also_identity: dict[str, str] = {}
        """What else than the documents must be equal, of the trainer's own."""
        self._feed: TimedPrefetcher[StepBatch | BaseException] | None = None
        self._stop = threading.Event()

    def next_batch(self) -> StepBatch | None:
        """The next batch; None, on all ranks, when the sources are spent. Call it on all ranks.

        While one rank waits for its data all of them exchange a few flags every second, so that none of them is inside
        a collective of the device, which has a time limit.

        Raises:
            ConfigError: on all ranks, when a document cannot be read on one.
            Preempted: on all ranks, when one was asked to stop while they waited.
            Stalled: on all ranks, when one had no data for data.max_stall_seconds.
        """
        if self._feed is None:
            self._feed = self._start()
        started = time.monotonic()
        item: StepBatch | BaseException | End | None = None
        told = _FIRST_STALL_SECONDS
        while True:
            item = item or self._feed.poll(_POLL_SECONDS)
            assert not isinstance(item, End), "it has failed before"
            waited = time.monotonic() - started
            waiting, stops, late, failures, *counts = self._world.add(
                item is None,
                item is None and stop_requested(),
                item is None and waited > self._max_stall_seconds,
                isinstance(item, BaseException),
                *(item.counts if isinstance(item, StepBatch) else (0, 0, 0, 0)),
            )
            if failures:
                self._world.together(functools.partial(_raise_if_failed, item))
            if not waiting:
                break
            if stops:
                raise Preempted
            if late:
                raise Stalled(f"no data for {waited:.0f} s, data.max_stall_seconds = {self._max_stall_seconds:g}")
            if waited > told:
                logger.warning(
                    f"{int(waiting)} of {self._world.size} ranks have been waiting for data for {waited:.0f} s"
                )
                told *= 2
        _raise_if_failed(item)
        assert isinstance(item, StepBatch)
        if waited > _FIRST_STALL_SECONDS:
            logger.warning(f"The data went on after a stall of {waited:.0f} s")
        return item.with_counts(*counts) if counts[0] else None

    def close(self) -> None:
        """Stop preparing batches; only `load_state_dict` starts again where it should.

        Also called at exit: a thread that is still busy when the interpreter ends could crash it.
        """
        self._stop.set()
        if self._feed is not None:
            self._feed.close(self._interrupt)
            self._report()
        self._feed = None
        atexit.unregister(self.close)

    def commit(self, batch: StepBatch) -> None:
        """The batch was trained on: a checkpoint goes on behind it."""
        self._committed = batch.state

    def state_dict(self) -> dict[str, Any]:
        """JSON: the state of each of this rank's streams, by number, and from before its last row.

        Each has the rolling hash of all tokens that the stream gave, so that a load can tell whether it goes on as it
        would have done.
        """
        return self._committed

    def load_state_dict(self, streams: dict[str, Any]) -> None:
        """Go on where the state of all streams, gathered from all ranks, was taken.

        The last row of each stream is made again: its hash must be the one in the state.

        Raises:
            ConfigError: the documents read differently now.
        """
        self.close()
        for s, stream in self._streams.items():
            stream.repeat_last_row(streams[str(s)])
        self._committed = {str(s): streams[str(s)] for s in self._streams}

    def identity(self) -> dict[str, Any]:
        """What must be equal for a state to mean the same documents."""
        return {
            "num_streams": self._run_size.num_streams,
            "seq_len": self._seq_len,
            "seed": self.corpus.seed,
            "tokenizer": self.corpus.tokenizer.fingerprint,
            "holdout_fraction": self.corpus.holdout_fraction,
            "packing": self.corpus.packing,
            "encoding": self.corpus.encoder.fingerprint(self.corpus.tokenizer),
            "block_rows": BLOCK_ROWS,
            "order": [source.name for source in self.corpus.sources],
            "sources": {
                source.name: [source.documents.fingerprint, source.weight, source.max_epochs]
                for source in self.corpus.sources
            },
            **self.also_identity,
        }

    def digest(self, state: dict[str, Any]) -> str:
        """The rolling hash of all tokens that all streams gave."""
        return token_hash(state)

    def progress(self) -> dict[str, list[float]]:
        """[tokens, passes] of each source, of this rank's streams up to the committed batch.

        Documents that are held out or empty count as passed, those under way as far as they are used.
        """
        states = self._committed.values()
        tokens = [sum(state["tokens"][d] for state in states) for d in range(len(self.corpus.sources))]
        passed = [float(sum(state["draws"][d] for state in states)) for d in range(len(self.corpus.sources))]
        for d, _draw, start, length in (place for state in states for places in state["carry"] for place in places):
            passed[d] -= 1 - start / length
        return {
            source.name: [tokens[d], passed[d] / len(source.documents)] for d, source in enumerate(self.corpus.sources)
        }

    def _start(self) -> TimedPrefetcher[StepBatch | BaseException]:
        self._stop.clear()
        for source in self.corpus.sources:
            source.wait_for_ever()
        batches = with_errors(self._produce())
        atexit.register(self.close)
        if self._prefetch_steps == 0:
            return TimedPrefetcher(batches)
        ahead = Prefetcher(IterableWrapper(batches), prefetch_factor=self._prefetch_steps)
        ahead.reset()
        return TimedPrefetcher(ahead)

    def _start_workers(self, numbers: list[int], states: dict[str, Any]) -> WorkerPool:
        """Each of some streams, which go on from these states."""
        config, count = self._config, min(self._config.data.num_workers, len(self._streams))
        documents = {source.name: source.documents for source in self.corpus.sources}
        owned = [[s for i, s in enumerate(self._streams) if i % count == w] for w in range(count)]
        jobs = [
            WorkerJob(
                config=sendable(config),
                encoder=self.corpus.encoder,
                listings={source.name: source.listing for source in self.corpus.sources},
                num_streams=self._run_size.num_streams,
                states={str(s): states[str(s)] for s in own},
                numbers=[s for s in numbers if s in own],
                writer=f"rank{self._world.rank}-worker{w}",
                fingerprints={name: found.fingerprint for name, found in documents.items()},
            )
            for w, own in enumerate(owned)
        ]
        return WorkerPool(jobs, self._prefetch_steps)

    def _readings(self) -> list[ReaderPool]:
        documents = [source.documents for source in self.corpus.sources]
        return list({id(d.reading): d.reading for d in documents if isinstance(d, RowGroupDocuments)}.values())

    def _report(self) -> None:
        padding = sum(state["padding"] for state in self._committed.values())
        if padding:
            tokens = padding + _total(self._committed, "tokens")
            logger.info(f"Packing {self.corpus.packing}: {padding:,} of {tokens:,} row tokens were padding")
        if lost := _total(self._committed, "lost"):
            where = data_folder(self._config)
            logger.error(f"{lost:,} documents were lost to row groups that were given up: {where}/ledger-*.jsonl")

    def _interrupt(self) -> None:
        for reading in self._readings():
            reading.interrupt()

    def _steps(self, numbers: list[int]) -> Iterator[Step]:
        if self._config.data.num_workers == 0:
            yield from make_steps(self._streams, numbers, self._stop)
            return
        states, deaths = self._committed, 0
        while not self._stop.is_set():
            pool = self._start_workers(numbers, states)
            try:
                for rows, states in pool.steps(numbers, self._stop):
                    deaths = 0
                    yield rows, states
            except WorkerDied as error:
                deaths += 1
                if deaths == _MOST_DEATHS:
                    raise
                logger.warning(f"{error} Others go on where it was")
            finally:
                pool.close()

    def _produce(self) -> Iterator[StepBatch]:
        numbers = [
            r % self._run_size.num_streams
            for r in range(self._run_size.rows)
            if r % self._run_size.num_streams in self._streams
        ]
        padding = padding_row(self._seq_len + 1, self.corpus.tokenizer.eos_id)
        padded = False
        for found, state in self._steps(numbers):
            rows = [row or padding for row in found]
            num_tokens = sum(max(0, row.num_tokens - 1) for row in rows)
            num_targets = sum(row.num_targets for row in rows)
            if num_tokens and not padded and None in found:
                padded = True
                logger.warning("The documents of a data stream are spent: from here on batches are smaller")
            documents = tuple(dict.fromkeys(document for row in rows for document in row.documents))
            chunks = [rows[i : i + self._local_batch_size] for i in range(0, len(rows), self._local_batch_size)]
            batches = tuple(collate(chunk, self._pin) for chunk in chunks)
            left_out = _total(state, "skipped"), _total(state, "lost")
            yield StepBatch(batches, num_tokens, num_targets, *left_out, documents, state)


def _total(states: dict[str, Any], what: str) -> int:
    return sum(sum(state[what]) for state in states.values())


def _raise_if_failed(item: Any) -> None:
    if isinstance(item, BaseException):
        raise item


def build_dataloader(
    config: JobConfig, tokenizer: Tokenizer, world: World, run_size: RunSize, encoder: Encoder = PLAIN_TEXT
) -> DataLoader:
    """The training data of `[data]`, as plain text unless there is an encoder."""
    mixture = open_mixture(config.data.sources, config, world)
    ledger = SkipLog(data_folder(config), f"rank{world.rank}")
    corpus = as_corpus(mixture, config, tokenizer, ledger, encoder)
    for source in mixture:
        world.together(functools.partial(corpus.require_documents, source))
    return DataLoader(corpus, run_size, world, config)
