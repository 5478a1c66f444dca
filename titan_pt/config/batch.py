"""The rows of a step and the streams that give them, by the number of ranks."""

import math

from titan_pt.config.schema.job_config import JobConfig

MAX_STREAMS = 64


def fits(config: JobConfig, num_ranks: int) -> bool:
    """Whether the batch is of whole micro-batches, and that many ranks can share it and its streams."""
    return step_rows(config, num_ranks) % config.training.local_batch_size == 0 and can_share(config, num_ranks)


def can_share(config: JobConfig, num_ranks: int) -> bool:
    rows = step_rows(config, num_ranks)
    streams = stream_count(config, num_ranks)
    return not (rows % (micro_rows(config, num_ranks) * num_ranks) or rows % streams or streams % num_ranks)


def step_rows(config: JobConfig, num_ranks: int) -> int:
    return global_rows(config) or config.training.local_batch_size * num_ranks


def micro_rows(config: JobConfig, num_ranks: int) -> int:
    """Rows of a micro-batch: training.local_batch_size, or a rank's share of the global batch where that is less."""
    local, rows = config.training.local_batch_size, step_rows(config, num_ranks)
    return local if rows % num_ranks else min(local, rows // num_ranks)


def stream_count(config: JobConfig, num_ranks: int) -> int:
    """The streams; where the batch follows from the ranks they do not, as long as the ranks can share them.

    So a run of 1 rank goes on with 2, 4 or 8, and the other way round, where they divide training.local_batch_size.
    """
    if config.data.num_streams:
        return config.data.num_streams
    local = max(count for count in divisors(config.training.local_batch_size) if count <= MAX_STREAMS)
    if global_rows(config) is None and local % num_ranks == 0:
        return local
    return max(count for count in divisors(step_rows(config, num_ranks)) if count <= MAX_STREAMS)


def global_rows(config: JobConfig) -> int | None:
    """Rows of one optimizer step, or None where it follows from the number of ranks."""
    training = config.training
    if training.global_batch_tokens:
        return training.global_batch_tokens // training.seq_len
    return training.global_batch_size if training.global_batch_size > 0 else None


def divisors(n: int) -> list[int]:
    """All divisors, ascending."""
    low = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return low + [n // d for d in reversed(low) if d * d != n]
