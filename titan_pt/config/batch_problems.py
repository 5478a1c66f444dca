"""What is wrong with a batch that ranks cannot share. Imported where there is one."""

from collections.abc import Iterator

from titan_pt.config.batch import can_share, divisors, global_rows, micro_rows, step_rows, stream_count
from titan_pt.config.schema.job_config import JobConfig


def all_problems(config: JobConfig, num_ranks: int) -> list[str]:
    """What is wrong with the mesh and the batch of a run on that many ranks."""
    return [*_degree_problems(config, num_ranks), *(text for _, text in batch_problems(config, num_ranks))]


def batch_problems(config: JobConfig, num_ranks: int) -> Iterator[tuple[list[str], str]]:
    """(fields, what is wrong) of a batch and its streams on that many ranks. What is wrong on one is so on any."""
    local, rows = config.training.local_batch_size, step_rows(config, num_ranks)
    streams = stream_count(config, num_ranks)
    batch = ["training.global_batch_size", "training.global_batch_tokens"]
    if rows % local:
        yield (
            [*batch, "training.local_batch_size"],
            f"{_batch_name(config)}: {rows} rows are not a multiple of training.local_batch_size = {local}",
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
    fits = _listed([count for count in counts if can_share(config, count)])
    if rows % (micro_rows(config, num_ranks) * num_ranks):
        yield (
            [*batch, "training.local_batch_size"],
            f"{_batch_name(config)}: {rows} rows in micro-batches of training.local_batch_size = {local} cannot be "
            f"shared by {num_ranks} ranks; numbers of ranks that fit are {fits}",
        )
    elif streams % num_ranks:
        way_out = "" if config.data.num_streams else f" (or set data.num_streams to a divisor of {rows} rows)"
        yield (
            [*batch, "data.num_streams"],
            f"data.num_streams = {streams}: cannot be shared by {num_ranks} ranks; "
            f"numbers of ranks that fit are {fits}{way_out}",
        )


def _degree_problems(config: JobConfig, world_size: int) -> Iterator[str]:
    degrees = config.parallelism
    replicate, shard = degrees.data_parallel_replicate_degree, degrees.data_parallel_shard_degree
    if replicate * (world_size // replicate if shard == -1 else shard) != world_size:
        yield (
            f"parallelism.data_parallel_replicate_degree = {replicate} x data_parallel_shard_degree = {shard}: must "
            f"make {world_size}, the number of ranks; allowed replicate degrees are {_listed(divisors(world_size))}"
        )


def _batch_name(config: JobConfig) -> str:
    """The key and value that set the global batch."""
    key = "global_batch_tokens" if config.training.global_batch_tokens else "global_batch_size"
    return f"training.{key} = {getattr(config.training, key)}"


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"
