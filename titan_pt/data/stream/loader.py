"""Global batches of packed rows, prepared ahead, with the state that belongs to each.

Row r of every global batch comes from stream r mod S, and rank k of W owns streams [k S/W, (k+1) S/W): the documents
of a step do not depend on the number of ranks, nor on the split into micro-batches.
"""

import atexit
import faulthandler
import functools
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torchdata.nodes import IterableWrapper, Prefetcher

from titan_pt.components.tokenizer import Tokenizer
from titan_pt.config.run_size import RunSize
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.data.sources.documents import contents_of
from titan_pt.data.sources.opening import MixtureSource, data_settings, open_mixture
from titan_pt.data.stream.batch import StepBatch, collate_step
from titan_pt.data.stream.encoding import PLAIN_TEXT, Encoder
from titan_pt.data.stream.mixture import TokenizedMixture, tokenize_mixture
from titan_pt.data.stream.order import BLOCK_ROWS
from titan_pt.data.stream.prefetch import End, TimedPrefetcher, with_errors
from titan_pt.data.stream.row import padding_row
from titan_pt.data.stream.state import Json, ResumePoint, token_hash
from titan_pt.data.stream.steps import StepRows, make_steps
from titan_pt.data.stream.stream import Stream
from titan_pt.distributed.world import World
from titan_pt.protocols.registry import import_attribute
from titan_pt.run.exit_codes import Preempted, Stalled
from titan_pt.run.signals import stop_requested

logger = logging.getLogger("titan_pt")

_POLL_SECONDS = 1.0
_FIRST_STALL_SECONDS = 10.0


class DataLoader:
    """Endless (or until the sources are spent) sequence of this rank's StepBatches.

    `state_dict` is that of the last batch passed to `commit`: a batch that is prepared but not trained on leaves no
    trace, so that a resume repeats and loses nothing.

    Finite sources end in one stream earlier than in another. A stream without documents then gives rows without
    targets, until the last stream of the last rank has none left.
    """

    identity_keys: Mapping[str, Sequence[str]] = {
        "num_streams": ("data.num_streams", "training.global_batch_size", "training.global_batch_tokens"),
        "seq_len": ("training.seq_len",),
        "seed": ("data.seed", "debug.seed"),
        "tokenizer": ("tokenizer",),
        "holdout_fraction": ("validation.holdout_fraction", "validation.enable", "validation.sources"),
        "packing": ("data.packing",),
        "encoding": ("sft", "tokenizer.name"),
        "order": ("data.sources",),
        "sources": ("data.sources", "data.seed", "debug.seed"),
    }
    """The keys that decide each part of `identity`."""

    def __init__(self, mixture: TokenizedMixture, run_size: RunSize, world: World, config: JobConfig) -> None:
        self._run_size, self._world, self._config, self.mixture = run_size, world, config, mixture
        self._max_stall_seconds = config.data.max_stall_seconds
        num_streams, seq_len = run_size.num_streams, config.training.seq_len
        owned = num_streams // world.size
        first = world.rank * owned
        self._streams = {s: Stream(mixture, s, num_streams, seq_len) for s in range(first, first + owned)}
        self.committed = {s: ResumePoint(stream.state(), None) for s, stream in self._streams.items()}
        """State of each of this rank's streams behind the last batch passed to `commit`; replaced, never changed."""
        self.also_identity: dict[str, str] = {}
        """Further values of the trainer's own that must be equal for a resume, beside the documents."""
        self._makes_last_row_again = True
        self._files: dict[str, Any] = {}
        self._later: list[Any] = []
        self.keep_contents(mixture.sources)
        self._prefetcher: TimedPrefetcher[StepBatch | BaseException] | None = None
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
        if self._prefetcher is None:
            self._prefetcher = self._start()
        started = time.monotonic()
        item: StepBatch | BaseException | End | None = None
        next_warning = _FIRST_STALL_SECONDS
        while True:
            item = item or self._prefetcher.poll(_POLL_SECONDS)
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
                if item is None:
                    faulthandler.dump_traceback(2)  # of all threads: a source may be stuck
                raise Stalled(f"no data for {waited:.0f} s, data.max_stall_seconds = {self._max_stall_seconds:g}")
            if waited > next_warning:
                ranks = f"{int(waiting)} of {self._world.size} ranks"
                logger.warning(f"{ranks} have been waiting for data for {waited:.0f} s")
                next_warning *= 2
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
        if self._prefetcher is not None:
            self._prefetcher.close(self._interrupt)
            states = [point.state for point in self.committed.values()]
            if any(state.padding or any(state.lost) for state in states):
                from titan_pt.data.stream.last_report import report

                report(self.mixture, states)
        self._prefetcher = None
        atexit.unregister(self.close)

    def commit(self, batch: StepBatch) -> None:
        """Note that the batch was trained on: a checkpoint goes on behind it."""
        self.committed = dict(batch.points)

    def state_dict(self) -> Json:
        """JSON: the resume point of each of this rank's streams, by its number."""
        return {str(s): point.to_json() for s, point in self.committed.items()}

    def load_state_dict(self, streams: Json) -> None:
        """Go on from the gathered states of all streams. The last row of each is made again, to its hash in the state,
        or a ConfigError says that the documents read differently now."""
        from titan_pt.data.stream.resuming import resume_all

        self.close()
        self.committed = resume_all(self._streams, streams, makes_last_row_again=self._makes_last_row_again)

    def drop_begun(self) -> None:
        """Drop the rest of the documents that the rows so far end in; after `load_state_dict`."""
        from titan_pt.data.stream.resuming import without_begun

        self.committed = {s: without_begun(stream) for s, stream in self._streams.items()}

    def identity(self) -> Json:
        """JSON: everything that must be equal for a state to mean the same documents."""
        mixture = self.mixture
        return {
            "num_streams": self._run_size.num_streams,
            "seq_len": self._config.training.seq_len,
            "seed": mixture.seed,
            "tokenizer": mixture.tokenizer.fingerprint,
            "holdout_fraction": mixture.holdout_fraction,
            "packing": mixture.packing,
            "encoding": mixture.encoding,
            "block_rows": BLOCK_ROWS,
            "order": [source.name for source in mixture.sources],
            "sources": {s.name: [s.documents.fingerprint, s.weight, s.max_epochs] for s in mixture.sources},
            **self.also_identity,
        }

    def contents(self) -> Json:
        """JSON: [name, hash of the content] of each file of each source that is of files, which a resume compares.

        Of a file that a start may not hash, its state then is a further line of the hash.
        """
        known = {name: [[Path(file).name, told] for file, told in files] for name, files in self._files.items()}
        return {name: files for name, files in known.items() if files}

    def keep_contents(self, sources: Sequence[MixtureSource], where: str = "") -> None:
        """Have the contents of sources in `contents`; of those that are not trained on, `where` begins the names."""
        for source in sources:
            files: Any = contents_of(source.documents)
            if source.by_row_group or not all(known for _, known in files):
                later_hashes = import_attribute("titan_pt.data.remote.later_hashes:LaterHashes")
                self._later.append(files := later_hashes(files, self._config.data.cache_dir))
            self._files[f"{where}{source.name}"] = files

    def source_differences(self, saved: Json) -> tuple[list[str], list[str]]:
        """(files that are others now, all else that differs) of the sources in a data.json; call it before loading.

        Where a max_epochs differs the last rows are not made again: they may have been short for the old one.
        """
        from titan_pt.data.stream.same_sources import compare

        cache_dir = self._config.data.cache_dir
        found, again = compare(saved, self.mixture.sources, self._files, cache_dir, self._world)
        self._makes_last_row_again = again
        return found

    def digest(self, state: Json) -> str:
        """The rolling hash of all tokens that all streams gave, from their gathered states."""
        return token_hash(state)

    def progress(self) -> dict[str, list[float]]:
        """[tokens, passes] of each source, of this rank's streams up to the committed batch.

        Documents that are held out or empty count as passed, those under way as far as they are used.
        """
        states = [point.state for point in self.committed.values()]
        passed = [float(sum(draws)) for draws in zip(*(state.draws for state in states), strict=True)]
        for piece in (piece for state in states for pieces in state.carry for piece in pieces):
            passed[piece.source] -= 1 - piece.start / piece.length
        return {
            source.name: [sum(state.tokens[d] for state in states), passed[d] / len(source.documents)]
            for d, source in enumerate(self.mixture.sources)
        }

    def _start(self) -> TimedPrefetcher[StepBatch | BaseException]:
        self._stop.clear()
        for source in self.mixture.sources:
            source.wait_for_ever()
        for later in self._later if self._world.is_main else []:  # the others' files are those of rank 0
            later.start()
        batches = with_errors(self._batches())
        atexit.register(self.close)
        if self._config.data.prefetch_steps == 0:
            return TimedPrefetcher(batches)
        ahead = Prefetcher(IterableWrapper(batches), prefetch_factor=self._config.data.prefetch_steps)
        ahead.reset()
        return TimedPrefetcher(ahead)

    def _interrupt(self) -> None:
        for source in self.mixture.sources:
            source.interrupt()

    def _steps(self, numbers: list[int]) -> Iterator[StepRows]:
        if self._config.data.num_workers == 0:
            return make_steps(self._streams, numbers, self._stop)
        from titan_pt.data.stream.workers import worker_steps

        num_streams = self._run_size.num_streams
        return worker_steps(self.mixture, self._config, num_streams, numbers, self.committed, self._stop)

    def row_streams(self) -> list[int]:
        """The stream of each of this rank's rows of a global batch."""
        rows, num_streams = self._run_size.rows, self._run_size.num_streams
        return [r % num_streams for r in range(rows) if r % num_streams in self._streams]

    def _batches(self) -> Iterator[StepBatch]:
        training = self._config.training
        padding = padding_row(training.seq_len + 1, self.mixture.tokenizer.eos_id)
        pin = self._world.device.type == "cuda"
        padded = False
        for step in self._steps(self.row_streams()):
            rows = [row or padding for row in step.rows]
            batch = collate_step(rows, step.points, training.local_batch_size, pin)
            if batch.num_tokens and not padded and None in step.rows:
                padded = True
                logger.warning("The documents of a data stream are spent: from here on batches are smaller")
            yield batch


def _raise_if_failed(item: Any) -> None:
    if isinstance(item, BaseException):
        raise item


def build_dataloader(
    config: JobConfig, tokenizer: Tokenizer, world: World, run_size: RunSize, encoder: Encoder = PLAIN_TEXT
) -> DataLoader:
    """The training data of `[data]`, as plain text unless there is an encoder."""
    sources = open_mixture(config.data.sources, config, world)
    settings = data_settings(config, run_size.num_streams)
    mixture = tokenize_mixture(sources, settings, tokenizer, f"rank{world.rank}", encoder)
    for source in sources:
        world.together(functools.partial(mixture.require_documents, source))
    return DataLoader(mixture, run_size, world, config)
