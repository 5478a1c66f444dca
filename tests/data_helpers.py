"""Documents, ranks and loaders for the tests of the data: small, in memory, ranks as threads of one process."""

import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch

from titan_pt.components.tokenizer import ByteTokenizer, Tokenizer
from titan_pt.config.run_size import plan_run_size
from titan_pt.config.schema.job_config import Data, JobConfig, Source, Training
from titan_pt.data.sources.documents import Documents
from titan_pt.data.sources.opening import MixtureSource
from titan_pt.data.sources.registry import DataSettings, SourceContext, open_source
from titan_pt.data.stream.loader import DataLoader
from titan_pt.data.stream.mixture import TokenizedMixture
from titan_pt.data.stream.resuming import state_from_json
from titan_pt.data.stream.state import StreamState
from titan_pt.distributed.world import World

T = TypeVar("T")


def open_one(source: Source, seed: int = 1, cache_dir: str | None = None) -> Documents:
    """The documents of one source, open_one without a listing."""
    settings = DataSettings(Data(cache_dir=cache_dir), seed, num_streams=1, holdout_fraction=0.0, folder=Path())
    return open_source(source, SourceContext(settings))


def through_json(state: StreamState) -> StreamState:
    """A stream's state as a checkpoint gives it back."""
    return state_from_json(json.loads(json.dumps(state.to_json())))


class Texts(list[str]):
    """Documents given one by one."""

    fingerprint = "texts"


def texts(*lengths: int, name: str = "t") -> Texts:
    """Documents of these lengths in bytes that are all different."""
    return Texts((f"{name}{i}-" + "abcdefghij" * (length // 10 + 1))[:length] for i, length in enumerate(lengths))


def mixture_of(*sources: MixtureSource | Sequence[str], seed: int = 1, **options: Any) -> TokenizedMixture:
    """A mixture of bytes; bare documents become sources "s0", "s1", ... of weight 1 without end."""
    mixture = [s if isinstance(s, MixtureSource) else MixtureSource(f"s{i}", s, 1.0) for i, s in enumerate(sources)]
    return TokenizedMixture(mixture, ByteTokenizer(), seed, **options)


def data_config(
    *, seq_len: int = 8, rows: int = 8, local: int = 1, streams: int | None = None, prefetch: int = 0
) -> JobConfig:
    """The config of a loader."""
    return JobConfig(
        training=Training(seq_len=seq_len, global_batch_size=rows, local_batch_size=local),
        data=Data(num_streams=streams, prefetch_steps=prefetch),
    )


class Meeting:
    """Where the threads of a world exchange values."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=60)
        self.values: list[Any] = [None] * size

    def exchange(self, rank: int, value: Any) -> list[Any]:
        self.values[rank] = value
        self.barrier.wait()
        values = list(self.values)
        self.barrier.wait()
        return values


class ThreadWorld(World):
    """A rank that is a thread."""

    meeting: Meeting

    def __init__(self, rank: int = 0, size: int = 1, meeting: Meeting | None = None) -> None:
        super().__init__(rank, size, torch.device("cpu"), mesh=None, flags=None, control=None, background=None)
        object.__setattr__(self, "meeting", meeting or Meeting(1))

    def gather(self, value: T, group: Any = None) -> list[T]:
        return self.meeting.exchange(self.rank, value)

    def broadcast(self, value: T | None, group: Any = None) -> T:
        return self.gather(value)[0]

    def add(self, *counts: int) -> list[int]:
        return [sum(column) for column in zip(*self.gather(counts), strict=True)]

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        return value.copy_(torch.stack(self.gather(value.clone())).sum(0))


def on_ranks(size: int, function: Callable[[ThreadWorld], T]) -> list[T]:
    """The function's value on every rank, in rank order."""
    meeting = Meeting(size)

    def run(rank: int) -> T:
        try:
            return function(ThreadWorld(rank, size, meeting))
        except BaseException:
            meeting.barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(run, rank) for rank in range(size)]
    errors = [error for future in futures if (error := future.exception())]
    for error in errors:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    return [future.result() for future in futures]


def loader(documents: TokenizedMixture, config: JobConfig, world: World | None = None) -> DataLoader:
    """The loader of one rank."""
    world = world or ThreadWorld()
    return DataLoader(documents, plan_run_size(config, world.size), world, config)


def encoded(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a document in a stream."""
    return [*tokenizer.encode(text), tokenizer.eos_id]
