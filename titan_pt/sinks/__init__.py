"""Where a run's rows go beside metrics.jsonl: names of `metrics.sinks`, and how to register one of your own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from titan_pt.config.schema.job_config import JobConfig
from titan_pt.protocols.registry import Registry


@dataclass(frozen=True)
class SinkContext:
    """What a sink is built from."""

    config: JobConfig
    run_folder: Path
    first_step: int
    """The first step that this start writes. What an earlier start gave about it and later steps is trained again."""
    world_size: int


class Sink:
    """Takes what rank 0 writes, in a thread of its own: what it raises is told, and training waits for none of it.

    An OSError, such as one of the network, is tried again with the next row; any other error loses its row.
    """

    def write(self, row: Mapping[str, Any]) -> None:
        """Take the values of a logged step by their keys in metrics.jsonl, "step" among them.

        A step may come a second time with values of a late validation alone.
        """
        raise NotImplementedError

    def write_texts(self, texts: Mapping[str, str], step: int) -> None:
        """Take texts, such as samples, by their names."""

    def close(self) -> None:
        """Flush. Called once, at the end."""


SINKS: Registry[Callable[[SinkContext], Sink]] = Registry(
    "sink {}",
    {"wandb": "titan_pt.sinks.wandb:WandbSink", "trackio": "titan_pt.sinks.trackio:TrackioSink"},
    reserved=("tensorboard",),
)


def register_sink(name: str, build: Callable[[SinkContext], Sink]) -> None:
    """Let `metrics.sinks` name a sink of your own; call it in the module of `experimental.custom_import`.

    Args:
        build: makes the sink; a subclass of `Sink` whose `__init__` takes a `SinkContext` is one.

    Raises:
        ValueError: the name is taken.
    """
    SINKS.register(name, build)
