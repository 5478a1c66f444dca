"""What is wrong with a batch that ranks cannot share. Imported where there is one."""

from collections.abc import Iterator

from titan_pt.config.batch import can_share, divisors, fits, global_rows, micro_rows, step_rows, stream_count
from titan_pt.config.schema.job_config import JobConfig


def all_problems(config: JobConfig, num_ranks: int) -> list[str]:
    """What is wrong with the mesh and the batch of a run on that many ranks."""
    return [*_degree_problems(config, num_ranks), *(text for _, text in batch_problems(config, num_ranks))]


def wrong_batch(config: JobConfig) -> Iterator[tuple[list[str], str]]:
    """(fields, what is wrong) of a batch that is so on any number of ranks."""
    training = config.training
    if training.global_batch_size == 0:
        yield (
            ["training.global_batch_size"],
            "training.global_batch_size = 0: must be positive, or -1 for one micro-batch",
        )
    tokens = training.global_batch_tokens
    if tokens and tokens % training.seq_len:
        lower = tokens // training.seq_len * training.seq_len
        near = " or ".join(str(size) for size in (lower, lower + training.seq_len) if size)
        yield (
            ["training.global_batch_tokens", "training.seq_len"],
            f"training.global_batch_tokens = {tokens}: not a multiple of training.seq_len = {training.seq_len}; "
            f"the nearest are {near}",
        )
    elif global_rows(config) and not fits(config, 1):
        yield from batch_problems(config, 1)


def batch_problems(config: JobConfig, num_ranks: int) -> Iterator[tuple[list[str], str]]:
    """(fields, what is wrong) of a batch and its streams on that many ranks. What is wrong on one is so on any."""
    local, rows = config.training.local_batch_size, step_rows(config, num_ranks)
    streams = stream_count(config, num_ranks)
    batch = ["training.global_batch_size", "training.global_batch_tokens"]
    if rows % local:
        yield (
            [*batch, "training.local_batch_size"],
            f"{_batch_name(config)}: {rows} rows are not a multiple of training.local_batch_size = {local}; the "
            f"nearest are {_near(config, local)}, or set local_batch_size to {_fitting(rows, local)}",
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
            f"shared by {num_ranks} ranks; numbers of ranks that fit are {fits}, and batches for {num_ranks} ranks "
            f"{_near(config, local * num_ranks)}",
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


def _near(config: JobConfig, multiple: int) -> str:
    """The values of the global batch's key that are nearest and multiples of so many rows."""
    tokens = config.training.global_batch_tokens
    unit = config.training.seq_len if tokens else 1
    lower = step_rows(config, 1) // multiple * multiple
    return " or ".join(str(rows * unit) for rows in (lower, lower + multiple) if rows)


def _fitting(rows: int, local: int) -> str:
    """Sizes of a micro-batch that divide the rows: the nearest below and above."""
    below, above = [d for d in divisors(rows) if d < local][-1:], [d for d in divisors(rows) if d > local][:1]
    return " or ".join(map(str, below + above))


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"
