"""A world of one process, for tools that share code with training."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from titan_pt.config.schema.job_config import Comm, JobConfig
from titan_pt.distributed.world import World, start_world, stop_world


@contextlib.contextmanager
def lone_world() -> Iterator[World]:
    """Context with a world of this process alone."""
    try:
        yield start_world(JobConfig(comm=Comm(trace_buf_size=0)), Path(), alone=True)
    finally:
        stop_world()
