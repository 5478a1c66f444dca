"""The learning rate as a function of the step: nothing to save, nothing to drift on resume."""

import math
from collections.abc import Callable

from titan_pt.config.schema.job_config import JobConfig

Schedule = Callable[[int], float]
"""Learning rate by optimizer step, counted from 1."""


def build_lr_schedulers(config: JobConfig, steps: int) -> Schedule:
    """Build the schedule of `[lr_scheduler]` over a run of `steps` optimizer steps."""
    section = config.lr_scheduler
    total = section.total_steps or steps
    warmup = warmup_steps(config, steps)
    decay = total - warmup if section.decay_ratio is None else min(round(total * section.decay_ratio), total - warmup)

    def schedule(step: int) -> float:
        return config.optimizer.lr * lr_factor(step, total, warmup, decay, section.decay_type, section.min_lr_factor)

    return schedule


class PlannedSchedule:
    """A learning-rate schedule whose end moves: a spec's own, built again for each new number of steps."""

    def __init__(self, build: Callable[[int], Schedule], steps: int) -> None:
        self._build, self._steps, self._schedule = build, steps, build(steps)

    def __call__(self, step: int) -> float:
        return self._schedule(step)

    def end_at(self, steps: int) -> None:
        """Be the schedule of a run of so many steps."""
        if steps != self._steps:
            self._steps, self._schedule = steps, self._build(steps)


def warmup_steps(config: JobConfig, steps: int) -> int:
    """Number of warm-up steps in a run of `steps` steps, shortened so that at least one step follows."""
    return min(config.lr_scheduler.warmup_steps, (config.lr_scheduler.total_steps or steps) - 1)


def lr_factor(step: int, total: int, warmup: int, decay: int, decay_type: str, min_lr_factor: float) -> float:
    """Learning rate of a step (from 1) relative to the peak: linear warm-up, constant, decay over the last steps.

    The peak is reached at step `warmup` (at once when 0); step `total` and later have exactly `min_lr_factor` if
    anything decays. "sqrt" is 1 - sqrt(progress) (Hägele et al. 2405.18392, eq. 2).
    """
    if step <= warmup:
        return step / warmup
    if decay == 0:
        return 1.0
    progress = min(1.0, max(0.0, (step - (total - decay)) / decay))
    shape = {
        "linear": 1.0 - progress,
        "sqrt": 1.0 - math.sqrt(progress),
        "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
    }[decay_type]
    return min_lr_factor + (1.0 - min_lr_factor) * shape
