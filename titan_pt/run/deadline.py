"""`training.max_hours`: a run measures its speed and plans its last step so that it ends, decayed and saved, on time.

The time is the calendar's: it counts from the first start, and what passes between two starts of a run is spent too.
Rank 0 plans before each step how many more there is time for, and the learning rate follows the plan: a cosine is
stretched or squeezed, a cooldown starts when it must.
"""

import contextlib
import json
import logging
import math
import statistics
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from titan_pt.components.metrics import format_seconds
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.protocols.context import TrainContext
from titan_pt.run.files import parse_json, write_atomic
from titan_pt.run.signals import signalled, stop_at
from titan_pt.run.step_plan import StepPlan

logger = logging.getLogger("titan_pt")

CLOCK_FILE = "clock.json"

# A speed is the median of the newest blocks of steps: a stall in one or two of them is no change of speed.
_BLOCK_STEPS, _NUM_BLOCKS = 10, 5
# A plan that is off by less of the remaining steps is kept, because speeds are noisy.
_TOLERANCE = 0.005
# A change of the run's steps that is worth a line.
_TOLD = 0.01
# Kept free at the end: some of the whole time, the time to leave the processes, and more than the last save took.
_MARGIN, _LEAVE_SECONDS, _CAUTION = 0.0025, 5.0, 1.25
# By how much short steps may be late all the same.
_JITTER_SECONDS = 1.0


class Speed:
    """Seconds of a step, from the times at which steps end.

    Args:
        prior: what is believed before two steps have ended; 0.0 for nothing.
    """

    def __init__(self, prior: float) -> None:
        self.seconds_per_step = prior
        self._blocks: deque[float] = deque(maxlen=_NUM_BLOCKS)
        self._start: float | None = None
        self._num_steps = 0

    def step_ends(self, now: float) -> None:
        """A step is done. The first one, which compiles, only starts the clock."""
        if self._start is None:
            self._start = now
            return
        self._num_steps += 1
        newest = (now - self._start) / self._num_steps
        if self._num_steps == _BLOCK_STEPS:
            self._blocks.append(newest)
            self._start, self._num_steps = now, 0
        self.seconds_per_step = statistics.median(self._blocks) if self._blocks else newest

    def pause(self, seconds: float) -> None:
        """So much of the time since the last step was not for a step."""
        if self._start is not None:
            self._start += seconds


@dataclass
class Work:
    """Recurring work that holds up training: done every so many steps, and once more at the end."""

    every: int
    pause: float = 0.0
    """Seconds for which it held up training the last time."""
    whole: float = 0.0
    """Seconds until it was done, in the background too."""

    def seconds(self, first: int, last: int) -> float:
        """Predict the seconds for which the work will hold up training after step `first`, up to step `last`."""
        return max(0, last // self.every - first // self.every) * self.pause


class Deadline:
    """The plan of a run with training.max_hours. Times are Unix times, in seconds.

    Args:
        max_steps: the steps of the run if there were no deadline.
        started: when the run was started for the first time.
        saved: `state_dict` of the checkpoint that is resumed.
    """

    def __init__(
        self, config: JobConfig, max_steps: int, started: float, saved: Mapping[str, Any] | None = None
    ) -> None:
        assert config.training.max_hours is not None
        self._max_seconds = config.training.max_hours * 3600
        self._max_steps, self.started = max_steps, started
        self.end = started + self._max_seconds
        more = saved is None or self.end > saved["end"] + 1 or max_steps > saved["max_steps"]
        self.steps = max_steps if saved is None or more else min(saved["steps"], max_steps)
        """The steps that the run will have, as planned."""
        self._told = self.steps
        self._speed = Speed(saved["seconds_per_step"] if saved else 0.0)
        self._works = {what: Work(every) for what, every in _periods(config).items()}
        for what, work in self._works.items():
            work.pause, work.whole = saved["works"][what] if saved else (0.0, 0.0)

    @property
    def latest(self) -> float:
        """When the last work has to begin."""
        work = sum(work.whole for work in self._works.values())
        return self.end - _CAUTION * work - _MARGIN * self._max_seconds - _LEAVE_SECONDS

    def step_ends(self, now: float) -> None:
        """A step is done; call it before what comes between steps."""
        self._speed.step_ends(now)

    def paused(self, what: str, seconds: float, whole: float = 0.0) -> None:
        """A "validation", "save" or "export" held up training; `whole` is what it takes to its end."""
        self._speed.pause(seconds)
        work = self._works[what]
        work.pause, work.whole = seconds, max(seconds, whole)

    def plan(self, step: int, now: float) -> int:
        """The steps of the run, planned when `step` are done: at least one more, so that the rate can decay in it.

        One step's time is kept free, for a last step that takes twice as long as it should.
        """
        per_step = self._speed.seconds_per_step
        if not per_step:
            return self.steps
        seconds = self.latest - max(per_step, _JITTER_SECONDS) - now
        pauses = sum(work.seconds(step, step + int(seconds / per_step)) for work in self._works.values())
        left = max(1, int((seconds - pauses) / per_step))
        planned = min(step + left, self._max_steps)
        if self.steps <= step or abs(planned - self.steps) > _TOLERANCE * left:
            self.steps = planned
        if abs(self.steps - self._told) > _TOLD * self._told:
            logger.info(
                f"Deadline in {format_seconds(self.end - now)}, {per_step:.3g} s a step: {self.steps:,} steps are "
                f"planned, {self._told:,} were; the learning rate follows"
            )
            self._told = self.steps
        return self.steps

    def describe(self, now: float) -> str:
        """When it is."""
        date = datetime.fromtimestamp(self.end, timezone.utc)
        left = f"in {format_seconds(self.end - now)}" if now < self.end else f"{format_seconds(now - self.end)} ago"
        return f"{date:%Y-%m-%d %H:%M:%S} UTC, {left}"

    def state_dict(self) -> dict[str, Any]:
        """JSON, for a checkpoint."""
        return {
            "started": self.started,
            "end": self.end,
            "max_steps": self._max_steps,
            "steps": self.steps,
            "seconds_per_step": self._speed.seconds_per_step,
            "works": {what: [work.pause, work.whole] for what, work in self._works.items()},
        }


def _periods(config: JobConfig) -> dict[str, int]:
    """Steps between what holds up training, and is done at the end too."""
    periods = {"validation": config.validation.freq, "save": config.checkpoint.interval}
    return periods | {"export": max(1, config.checkpoint.export_hf_interval)}


def first_start(run_folder: Path | None, now: float, saved: Mapping[str, Any] | None) -> float:
    """When a run was first started: what its folder or the checkpoint says, else now.

    The folder knows before there is a checkpoint: a run that was killed early has spent time too.
    """
    if run_folder is None:
        return now
    starts = [now, *([saved["started"]] if saved else [])]
    # There may be none, or a damaged one: the checkpoint has it too.
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        starts.append(float(parse_json((run_folder / CLOCK_FILE).read_text(encoding="utf-8"))["started"]))
    return min(starts)


def keep_start(run_folder: Path, started: float) -> None:
    """Write the time of the first start down for the next one."""
    write_atomic(run_folder / CLOCK_FILE, json.dumps({"started": started}))


class DeadlinePlan(StepPlan):
    """Plans the last step of a run with training.max_hours; all ranks agree on it, by the clock of rank 0.

    Args:
        run_folder: keeps the time of the first start; None where each start is a run of its own.
        started: when this attempt began, a Unix time.
    """

    def __init__(self, context: TrainContext, run_folder: Path | None, started: float) -> None:
        super().__init__(context)
        self._world, self._max_steps = context.world, context.run_size.steps
        self._run_folder, self._started = run_folder, started
        self._deadline: Deadline | None = None

    @property
    def total_steps(self) -> int:
        return self._deadline.steps if self._deadline else self._max_steps

    @property
    def advice(self) -> str:  # type: ignore[override]
        return "training.max_hours" if self.total_steps < self._max_steps else "training.steps"

    @property
    def deadline(self) -> Deadline:
        assert self._deadline is not None, "begin() was called"
        return self._deadline

    def begin(self, saved: Mapping[str, Any] | None) -> None:
        started = self._world.on_main(lambda: first_start(self._run_folder, self._started, saved))
        self._deadline = Deadline(self.context.config, self._max_steps, started, saved)
        logger.info(
            f"Deadline: {self._deadline.describe(time.time())}; the run ends there, or at step {self._max_steps:,} "
            "before it"
        )

    def keep_start(self) -> None:
        if self._run_folder and self._world.is_main:
            keep_start(self._run_folder, self.deadline.started)

    def replan(self, step: int) -> None:
        planned = self.deadline.plan(step, time.time()) if self._world.is_main else 0
        self.deadline.steps = self._world.add(planned)[0]
        self.context.schedule.end_at(self.deadline.steps)
        if self._world.is_main:
            stop_at(self.deadline.latest)

    def step_ends(self) -> None:
        self.deadline.step_ends(time.time())

    def paused(self, what: str, seconds: float, whole: float = 0.0) -> None:
        self.deadline.paused(what, seconds, whole)

    def is_over(self) -> bool:
        """Whether the deadline stopped the run, and no signal did. From now on the deadline stops nothing any more."""
        over = self._world.is_main and time.time() >= self.deadline.latest
        stop_at(math.inf)
        came, signals = self._world.add(over, signalled())
        return came > 0 and not signals

    def describe_end(self) -> str:
        return f"; the deadline is {self.deadline.describe(time.time())}"

    def state_dict(self) -> dict[str, Any] | None:
        return self.deadline.state_dict()
