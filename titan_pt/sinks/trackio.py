"""Trackio: a local record that `trackio show` opens; its own environment variables, such as TRACKIO_DIR, hold."""

import os
from collections.abc import Mapping
from typing import Any

import trackio

from titan_pt.components.tensorboard import plotted
from titan_pt.run.secrets import fenced
from titan_pt.sinks import Sink, SinkContext
from titan_pt.sinks.given import GivenSteps


class TrackioSink(Sink):
    """Rows by TorchTitan's names of TensorBoard, by the run's own steps; one trackio run over all restarts.

    Steps that are trained again after a restart are not given a second time.
    """

    def __init__(self, context: SinkContext) -> None:
        self._world_size = context.world_size
        self._given = GivenSteps(context.run_folder / "trackio.json", context.first_step)
        trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", "titan_pt"),
            name=f"{context.run_folder.resolve().name}-{self._given.id}",
            resume="allow",
            config=context.config.dump(),
            embed=False,
        )

    def write(self, row: Mapping[str, Any]) -> None:
        if not self._given.has(row["step"]):
            trackio.log(plotted(row, self._world_size), step=row["step"])
            self._given.note(row["step"])

    def write_texts(self, texts: Mapping[str, str], step: int) -> None:
        if not self._given.has(step):
            trackio.log({tag: trackio.Markdown(fenced(text)) for tag, text in texts.items()}, step=step)

    def close(self) -> None:
        trackio.finish()
