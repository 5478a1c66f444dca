"""The numbers that follow from a config and a number of ranks: batch, streams, steps, tokens."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.job_config import JobConfig

MAX_STREAMS = 64


@dataclass(frozen=True)
class RunSize:
    """One run in numbers. Rows are sequences of seq_len tokens."""

    rows: int
    """Rows of one optimizer step over all ranks."""
    rows_per_rank: int
    """Rows of one optimizer step on one rank."""
    accumulation_steps: int
    """Micro-batches of one optimizer step on one rank."""
    num_streams: int
    """Logical streams of documents."""
    tokens_per_step: int
    """Tokens of one optimizer step over all ranks."""
    steps: int
    """Optimizer steps of the run."""

    @property
    def local_rows(self) -> int:
        """Rows of one micro-batch on one rank."""
        return self.rows_per_rank // self.accumulation_steps

    @property
    def tokens(self) -> int:
        """Tokens of the run."""
        return self.steps * self.tokens_per_step


def plan_run_size(config: JobConfig, world_size: int) -> RunSize:
    """The size of a run on `world_size` data ranks.

    Raises:
        ConfigError: the ranks do not divide the batch or the streams, or are not replicate x shard.
    """
    problems = [*_degree_problems(config, world_size), *(text for _, text in batch_problems(config, world_size))]
    if problems:
        raise ConfigError(*problems)
    rows, tokens = _rows(config, world_size), config.training.tokens
    tokens_per_step = rows * config.training.seq_len
    return RunSize(
        rows=rows,
        rows_per_rank=rows // world_size,
        accumulation_steps=rows // (_local_rows(config, world_size) * world_size),
        num_streams=_streams(config, world_size),
        tokens_per_step=tokens_per_step,
        steps=-(-tokens // tokens_per_step) if tokens else config.training.steps,
    )


def batch_problems(config: JobConfig, num_ranks: int) -> Iterator[tuple[list[str], str]]:
    """(fields, what is wrong) of a batch and its streams on that many ranks. What is wrong on one is so on any."""
    local, rows = config.training.local_batch_size, _rows(config, num_ranks)
    streams = _streams(config, num_ranks)
    batch = ["training.global_batch_size", "training.global_batch_tokens"]
    if rows % local:
        yield (
            [*batch, "training.local_batch_size"],
            f"{batch_name(config)}: {rows} rows are not a multiple of training.local_batch_size = {local}",
        )
    if rows % streams:
        yield (
            [*batch, "data.num_streams"],
            f"data.num_streams = {streams}: must divide the global batch of {rows} rows; "
            f"allowed are {_listed(divisors(rows))}",
        )
    if rows % local or rows % streams:
        return
    # Where the batch follows from the ranks, so may the streams: fewer ranks are tried, one by one.
    counts = divisors(rows) if global_rows(config) else range(1, num_ranks)
    fits = _listed([count for count in counts if _fits(config, count)])
    if rows % (_local_rows(config, num_ranks) * num_ranks):
        yield (
            [*batch, "training.local_batch_size"],
            f"{batch_name(config)}: {rows} rows in micro-batches of training.local_batch_size = {local} cannot be "
            f"shared by {num_ranks} ranks; numbers of ranks that fit are {fits}",
        )
    elif streams % num_ranks:
        way_out = "" if config.data.num_streams else f" (or set data.num_streams to a divisor of {rows} rows)"
        yield (
            [*batch, "data.num_streams"],
            f"data.num_streams = {streams}: cannot be shared by {num_ranks} ranks; "
            f"numbers of ranks that fit are {fits}{way_out}",
        )


def _fits(config: JobConfig, num_ranks: int) -> bool:
    rows = _rows(config, num_ranks)
    streams = _streams(config, num_ranks)
    return not (rows % (_local_rows(config, num_ranks) * num_ranks) or rows % streams or streams % num_ranks)


def _degree_problems(config: JobConfig, world_size: int) -> Iterator[str]:
    degrees = config.parallelism
    replicate, shard = degrees.data_parallel_replicate_degree, degrees.data_parallel_shard_degree
    if replicate * (world_size // replicate if shard == -1 else shard) != world_size:
        yield (
            f"parallelism.data_parallel_replicate_degree = {replicate} x data_parallel_shard_degree = {shard}: must "
            f"make {world_size}, the number of ranks; allowed replicate degrees are {_listed(divisors(world_size))}"
        )


def _rows(config: JobConfig, num_ranks: int) -> int:
    return global_rows(config) or config.training.local_batch_size * num_ranks


def _local_rows(config: JobConfig, num_ranks: int) -> int:
    """Rows of a micro-batch: training.local_batch_size, or a rank's share of the global batch where that is less."""
    local, rows = config.training.local_batch_size, _rows(config, num_ranks)
    return local if rows % num_ranks else min(local, rows // num_ranks)


def _streams(config: JobConfig, num_ranks: int) -> int:
    """The streams; where the batch follows from the ranks they do not, as long as the ranks can share them.

    So a run of 1 rank goes on with 2, 4 or 8, and the other way round, where they divide training.local_batch_size.
    """
    if config.data.num_streams:
        return config.data.num_streams
    local = max(count for count in divisors(config.training.local_batch_size) if count <= MAX_STREAMS)
    if global_rows(config) is None and local % num_ranks == 0:
        return local
    return max(count for count in divisors(_rows(config, num_ranks)) if count <= MAX_STREAMS)


def with_saved_streams(config: JobConfig, run_size: RunSize, num_ranks: int, saved: int | None) -> RunSize:
    """The run size with the streams of the checkpoint to go on from, where no key sets them and they fit."""
    if saved is None or config.data.num_streams or run_size.rows % saved or saved % num_ranks:
        return run_size
    return replace(run_size, num_streams=saved)


def global_rows(config: JobConfig) -> int | None:
    """Rows of one optimizer step, or None where it follows from the number of ranks."""
    training = config.training
    if training.global_batch_tokens:
        return training.global_batch_tokens // training.seq_len
    return training.global_batch_size if training.global_batch_size > 0 else None


def batch_name(config: JobConfig) -> str:
    """The key and value that set the global batch."""
    key = "global_batch_tokens" if config.training.global_batch_tokens else "global_batch_size"
    return f"training.{key} = {getattr(config.training, key)}"


def divisors(n: int) -> list[int]:
    """All divisors, ascending."""
    low = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return low + [n // d for d in reversed(low) if d * d != n]


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"
