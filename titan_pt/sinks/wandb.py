"""Weights & Biases: one W&B run over all restarts. Its own environment variables, such as WANDB_MODE, hold."""

import html
import logging
import os
from collections.abc import Mapping
from typing import Any

import wandb

from titan_pt.components.tensorboard import plotted
from titan_pt.sinks import Sink, SinkContext
from titan_pt.sinks.given import GivenSteps

logger = logging.getLogger("titan_pt")


def login_problems() -> list[str]:
    """What is wrong where W&B is to be online and nobody is logged in: it would ask at the terminal."""
    if os.environ.get("WANDB_MODE", "online") not in ("online", "run", "shared"):
        return []
    why = "nobody is logged in"
    try:
        if wandb.login(prompt=False, verify=False):  # whether the server answers is no matter of the start
            return []
    except Exception as error:  # a key of a wrong form
        why = " ".join(str(error).split())
    return [
        f'metrics.sinks = ["wandb"]: {why}; run `wandb login`, set WANDB_API_KEY, or set WANDB_MODE=offline to keep '
        "the record in the run folder"
    ]


class WandbSink(Sink):
    """Rows by TorchTitan's names of TensorBoard, by the run's own steps.

    W&B takes no step back: those that are trained again after a restart are not given a second time.
    """

    def __init__(self, context: SinkContext) -> None:
        self._world_size = context.world_size
        self._given = GivenSteps(context.run_folder / "wandb" / "titan_pt.json", context.first_step)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "titan_pt"),
            name=os.environ.get("WANDB_NAME", context.run_folder.resolve().name),
            id=self._given.id,
            resume="allow",
            dir=context.run_folder,
            config=context.config.dump(),
            settings=wandb.Settings(silent=True, console=os.environ.get("WANDB_CONSOLE", "off")),
        )
        logger.info(f"W&B: {self._run.url or self._run.dir}")

    def write(self, row: Mapping[str, Any]) -> None:
        if not self._given.has(row["step"]):
            self._run.log(plotted(row, self._world_size), step=self._open_step(row["step"]))
            self._given.note(row["step"])

    def write_texts(self, texts: Mapping[str, str], step: int) -> None:
        pages = {tag: wandb.Html(f"<pre>{html.escape(text)}</pre>", inject=False) for tag, text in texts.items()}
        self._run.log(pages, step=self._open_step(step))

    def close(self) -> None:
        self._run.finish()

    def _open_step(self, step: int) -> int:
        """The step, or the next one where W&B has closed it: a late validation's values would be dropped."""
        return max(step, self._run.step)
