"""The end of a run, agreed by all ranks: its own last one, or the deadline's."""

import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from titan_pt.protocols.context import TrainContext
from titan_pt.run.deadline import Deadline, first_start, keep_start
from titan_pt.run.signals import signalled, stop_at

logger = logging.getLogger("titan_pt")


class Timekeeper:
    """Tells a run its last step. Without training.max_hours that is the configured one, and nothing else is done.

    Args:
        run_folder: where the first start is written down; None where each start is a run of its own.
        started: when this attempt began, a Unix time.
    """

    def __init__(self, context: TrainContext, run_folder: Path | None, started: float) -> None:
        self._context, self._world = context, context.world
        self._run_folder, self._started = run_folder, started
        self._deadline: Deadline | None = None

    @property
    def total_steps(self) -> int:
        """The steps that the run will have, as far as is known."""
        return self._deadline.steps if self._deadline else self._context.run_size.steps

    @property
    def advice(self) -> str:
        """What gives a finished run more steps."""
        return "training.max_hours" if self.total_steps < self._context.run_size.steps else "training.steps"

    def begin(self, planned: Mapping[str, Any] | None) -> None:
        """The run begins or resumes; `planned` is `state_dict` of the checkpoint. Rank 0's clock counts."""
        if self._context.config.training.max_hours is None:
            return
        started = self._world.on_main(lambda: first_start(self._run_folder, self._started, planned))
        self._deadline = Deadline(self._context.config, self._context.run_size.steps, started, planned)
        logger.info(
            f"Deadline: {self._deadline.describe(time.time())}; the run ends there, or at step "
            f"{self._context.run_size.steps:,} before it"
        )

    def keep_start(self) -> None:
        """There is a finished step: from now on the time of this run counts over restarts."""
        if self._deadline and self._run_folder and self._world.is_main:
            keep_start(self._run_folder, self._deadline.started)

    def plan(self, step: int) -> None:
        """Plan the last step when `step` are done; the learning rate follows."""
        if self._deadline is None:
            return
        planned = self._deadline.plan(step, time.time()) if self._world.is_main else 0
        self._deadline.steps = self._world.add(planned)[0]
        self._context.schedule.end_at(self._deadline.steps)
        if self._world.is_main:
            stop_at(self._deadline.latest)

    def step_ends(self) -> None:
        """A step is done."""
        if self._deadline:
            self._deadline.step_ends(time.time())

    def paused(self, what: str, seconds: float, whole: float = 0.0) -> None:
        """See `Deadline.paused`."""
        if self._deadline:
            self._deadline.paused(what, seconds, whole)

    def is_over(self) -> bool:
        """Whether it was the deadline that stopped the run, and no signal. From now on it stops nothing any more."""
        if self._deadline is None:
            return False
        over = self._world.is_main and time.time() >= self._deadline.latest
        stop_at(math.inf)
        came, signals = self._world.add(over, signalled())
        return came > 0 and not signals

    def end(self) -> str:
        """How the end of training was in time, for the log."""
        return f"; the deadline is {self._deadline.describe(time.time())}" if self._deadline else ""

    def state_dict(self) -> dict[str, Any] | None:
        """JSON, for a checkpoint."""
        return self._deadline.state_dict() if self._deadline else None
