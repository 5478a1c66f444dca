"""The streams of a run that goes on from a checkpoint."""

from dataclasses import replace

from titan_pt.config.run_size import RunSize
from titan_pt.config.schema.job_config import JobConfig


def with_saved_streams(config: JobConfig, run_size: RunSize, num_ranks: int, saved: int | None) -> RunSize:
    """The run size with the streams of the checkpoint to go on from, where no key sets them and they fit."""
    if saved is None or config.data.num_streams or run_size.rows % saved or saved % num_ranks:
        return run_size
    return replace(run_size, num_streams=saved)
