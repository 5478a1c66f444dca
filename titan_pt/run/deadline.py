"""`training.max_hours`: a run measures its speed and plans its last step so that it ends, decayed and saved, on time.

The time is the calendar's: it counts from the first start, and what passes between two starts of a run is spent too.
It is measured by a clock that nobody sets, from one machine to another by theirs (`jumps`). Rank 0 plans before
each step how many more there is time for, and the learning rate follows the plan: a cosine is stretched or squeezed,
a cooldown starts when it must.
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
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from titan_pt.config.schema.job_config import JobConfig
from titan_pt.protocols.context import TrainContext
from titan_pt.run.files import parse_json, write_atomic
from titan_pt.run.jumps import JUMP_SECONDS, seconds_between, tell_jump
from titan_pt.run.ledger import moment, steady_seconds
from titan_pt.run.log_lines import format_seconds
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
# A run that is at its planned end goes on where there is time for so many more of its steps: a clock had cut the plan.
_GROWS = 0.05
# Kept free at the end: some of the whole time, the time to leave the processes, and more than the last save took.
_MARGIN, _LEAVE_SECONDS, _CAUTION = 0.0025, 5.0, 1.25
# By how much short steps may be late all the same.
_JITTER_SECONDS = 1.0
# No run takes longer: a note that says so is damaged.
_LONGEST_SECONDS = 100 * 365 * 86400.0


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
    """The plan of a run with training.max_hours. Times are seconds since the first start of the run.

    Args:
        max_steps: the steps of the run if there were no deadline.
        now: what has passed of the hours.
        saved: `state_dict` of the checkpoint that is resumed.
    """

    def __init__(
        self, config: JobConfig, max_steps: int, now: float = 0.0, saved: Mapping[str, Any] | None = None
    ) -> None:
        assert config.training.max_hours is not None
        self.end = config.training.max_hours * 3600
        self._max_steps = max_steps
        speed = max(0.0, saved["seconds_per_step"]) if saved else 0.0  # releases that trusted the wall clock saved less
        more = not saved or not speed or self.end > _hours_of(saved) + 1 or max_steps > saved["max_steps"]
        self._told = self.steps = max_steps if not saved or more else min(saved["steps"], max_steps)
        """The steps that the run will have, as planned."""
        self._speed = Speed(speed)
        self._works = {what: Work(every) for what, every in _periods(config).items()}
        for what, work in self._works.items():
            work.pause, work.whole = saved["works"][what] if saved else (0.0, 0.0)
        if speed and (left := self._steps_left(self.steps, now)) > max(1, _GROWS * self.steps):
            self.steps = min(self.steps + left, max_steps)

    @property
    def latest(self) -> float:
        """When the last work has to begin."""
        work = sum(work.whole for work in self._works.values())
        return self.end - _CAUTION * work - _MARGIN * self.end - _LEAVE_SECONDS

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
        left = max(1, self._steps_left(step, now))
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

    def _steps_left(self, step: int, now: float) -> int:
        """Steps for which there is time when `step` are done, with what comes between them."""
        per_step, works = self._speed.seconds_per_step, self._works.values()
        seconds = self.latest - max(per_step, _JITTER_SECONDS) - now
        number = int(seconds / (per_step + sum(work.pause / work.every for work in works)))
        pauses = sum(work.seconds(step, step + number) for work in works)
        return min(number, int((seconds - pauses) / per_step))

    def describe(self, now: float) -> str:
        """When it is."""
        date = datetime.fromtimestamp(time.time(), timezone.utc) + timedelta(seconds=self.end - now)
        left = f"in {format_seconds(self.end - now)}" if now < self.end else f"{format_seconds(now - self.end)} ago"
        return f"{date:%Y-%m-%d %H:%M:%S} UTC, {left}"

    def state_dict(self) -> dict[str, Any]:
        """JSON, for a checkpoint."""
        return {
            "max_seconds": self.end,
            "max_steps": self._max_steps,
            "steps": self.steps,
            "seconds_per_step": self._speed.seconds_per_step,
            "works": {what: [work.pause, work.whole] for what, work in self._works.items()},
        }


def _periods(config: JobConfig) -> dict[str, int]:
    """Steps between what holds up training, and is done at the end too."""
    periods = {"validation": config.validation.freq, "save": config.checkpoint.interval}
    return periods | {"export": max(1, config.checkpoint.export_hf_interval)}


def _hours_of(saved: Mapping[str, Any]) -> float:
    """max_hours of a saved plan, in seconds; earlier releases saved Unix times."""
    return float(saved["max_seconds"] if "max_seconds" in saved else saved["end"] - saved["started"])


def spent_seconds(run_folder: Path | None, attempt: float, saved: Mapping[str, Any] | None) -> float:
    """What has passed since a run was first started, as its folder or the checkpoint says.

    The folder knows before there is a checkpoint: a run that was killed early has spent time too.

    Args:
        attempt: seconds since this start.
    """
    notes = [saved] if saved and run_folder else []
    if run_folder:
        # There may be none, or a damaged one: the checkpoint has it too.
        with contextlib.suppress(OSError, ValueError):
            notes.append(parse_json((run_folder / CLOCK_FILE).read_text(encoding="utf-8")))
    spent = [attempt]
    for note in sorted(notes, key=_noted, reverse=True)[:1]:
        with contextlib.suppress(ValueError, KeyError, TypeError, OverflowError):
            if _noted(note) >= 0:
                spent.append(_noted(note) + seconds_between(note["at"], moment(), tell=True))
            else:  # of an earlier release, whose Unix times are all there is
                spent.append(time.time() - float(note["started"]))
    return max(seconds for seconds in spent if seconds < _LONGEST_SECONDS)


def _noted(note: Any) -> float:
    """The hours that a note says were spent, in seconds: the newest note says most. Negative where it does not."""
    try:
        spent = float(note["spent"])
    except (ValueError, KeyError, TypeError, OverflowError):
        return -1.0
    return spent if 0 <= spent < _LONGEST_SECONDS else -1.0


class DeadlinePlan(StepPlan):
    """Plans the last step of a run with training.max_hours; all ranks agree on it, by the clock of rank 0.

    Args:
        run_folder: keeps the time that was spent; None where each start is a run of its own.
        started: when this attempt began, by `time.monotonic`.
    """

    def __init__(self, context: TrainContext, run_folder: Path | None, started: float) -> None:
        super().__init__(context)
        self._world, self._max_steps = context.world, context.run_size.steps
        self._run_folder, self._started = run_folder, started
        self._deadline: Deadline | None = None
        self._first_start = 0.0
        """By `steady_seconds`, as if the first start had been in this process."""
        self._ahead = 0.0
        """Of the wall clock, to `steady_seconds`."""

    @property
    def total_steps(self) -> int:
        return self._deadline.steps if self._deadline else self._max_steps

    @property
    def advice(self) -> str:
        return "training.max_hours" if self.total_steps < self._max_steps else super().advice

    @property
    def deadline(self) -> Deadline:
        assert self._deadline is not None, "begin() was called"
        return self._deadline

    @property
    def _now(self) -> float:
        return steady_seconds() - self._first_start

    def begin(self, saved: Mapping[str, Any] | None) -> None:
        attempt = time.monotonic() - self._started
        spent = self._world.on_main(lambda: spent_seconds(self._run_folder, attempt, saved))
        self._first_start, self._ahead = steady_seconds() - spent, time.time() - steady_seconds()
        self._deadline = Deadline(self.context.config, self._max_steps, spent, saved)
        logger.info(
            f"Deadline: {self._deadline.describe(spent)}; the run ends there, or at step {self._max_steps:,} before it"
        )

    def keep_start(self) -> None:
        if self._run_folder and self._world.is_main:
            write_atomic(self._run_folder / CLOCK_FILE, json.dumps(self._spent()))

    def replan(self, step: int) -> None:
        planned = self.deadline.plan(step, self._now) if self._world.is_main else 0
        self.deadline.steps = self._world.add(planned)[0]
        self.context.schedule.end_at(self.deadline.steps)
        if self._world.is_main:
            stop_at(time.monotonic() + self.deadline.latest - self._now)
            ahead = time.time() - steady_seconds()
            if abs(jump := ahead - self._ahead) > JUMP_SECONDS:
                tell_jump(jump, "the deadline moves with it: the run has its hours")
                self._ahead = ahead

    def step_ends(self) -> None:
        self.deadline.step_ends(self._now)

    def paused(self, what: str, seconds: float, whole: float = 0.0) -> None:
        self.deadline.paused(what, seconds, whole)

    def is_over(self) -> bool:
        """Whether the deadline stopped the run, and no signal did. From now on the deadline stops nothing any more."""
        over = self._world.is_main and self._now >= self.deadline.latest
        stop_at(math.inf)
        came, signals = self._world.add(over, signalled())
        return came > 0 and not signals

    def describe_end(self) -> str:
        return f"; the deadline is {self.deadline.describe(self._now)}"

    def state_dict(self) -> dict[str, Any] | None:
        return {**self.deadline.state_dict(), **self._spent()}

    def _spent(self) -> dict[str, Any]:
        return {"spent": self._now, "at": moment()}
