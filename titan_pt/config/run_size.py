"""The numbers that follow from a config and a number of ranks: batch, streams, steps, tokens."""

from dataclasses import dataclass

from titan_pt.config.batch import divisors, fits, global_rows, micro_rows, step_rows, stream_count
from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.job_config import JobConfig


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
    degrees = config.parallelism
    shard, replicate = degrees.data_parallel_shard_degree, degrees.data_parallel_replicate_degree
    if replicate * (world_size // replicate if shard == -1 else shard) != world_size or not fits(config, world_size):
        from titan_pt.config.batch_problems import all_problems

        raise ConfigError(*all_problems(config, world_size))
    rows, tokens = step_rows(config, world_size), config.training.tokens
    tokens_per_step = rows * config.training.seq_len
    return RunSize(
        rows=rows,
        rows_per_rank=rows // world_size,
        accumulation_steps=rows // (micro_rows(config, world_size) * world_size),
        num_streams=stream_count(config, world_size),
        tokens_per_step=tokens_per_step,
        steps=-(-tokens // tokens_per_step) if tokens else config.training.steps,
    )


__all__ = ["RunSize", "divisors", "global_rows", "plan_run_size"]
