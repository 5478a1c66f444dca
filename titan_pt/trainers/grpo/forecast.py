"""The forecast of held-out accuracy at the end of a run (grpo.forecast), from a saturating curve through its beginning.

The curve is ScaleRL's sigmoid in the compute (arXiv 2510.13786, equation 1), with steps for compute:
R(s) = R_0 + (A - R_0) / (1 + (s_mid / s)^B). A grid of asymptotes A, middles s_mid and slopes B is weighed by its
likelihood, each with its own best R_0: what the evaluations cannot tell apart all counts, and makes the interval wide.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.9
"""Probability of the interval, if the curve has this form."""

_FEWEST = 4  # evaluations behind the first step
_WIDEST = 0.4  # of an interval that says something


@dataclass(frozen=True)
class Forecast:
    """Accuracy that the last evaluation will show."""

    step: int
    """The last one."""
    value: float
    low: float
    high: float

    @property
    def values(self) -> dict[str, float]:
        """Keys of metrics.jsonl."""
        return {"forecast/accuracy": self.value, "forecast/low": self.low, "forecast/high": self.high}

    def __str__(self) -> str:
        return (
            f"held-out accuracy {self.value:.2f} at step {self.step:,} ({self.low:.2f} to {self.high:.2f} with "
            f"{LEVEL:.0%}, where it goes on as a saturating curve)"
        )


def forecast(points: Sequence[tuple[float, float, float]], end: int) -> Forecast | str:
    """Forecast the value at step `end`, or say why the evaluations cannot tell.

    Args:
        points: (step, value, variance of its measurement) of the evaluations so far.
    """
    later = [point for point in points if point[0] > 1]
    if len(later) < _FEWEST:
        return f"{len(later)} evaluations behind step 1 are too few to tell; {_FEWEST} are needed"
    steps, values, variances = (np.array(column) for column in zip(*points, strict=True))
    asymptotes = np.linspace(0, 1, 51)[:, None, None, None]
    middles = end * np.geomspace(0.02, 2, 32)[None, :, None, None]
    slopes = np.array([0.7, 1, 1.5, 2, 3])[None, None, :, None]
    share = _risen(steps, middles, slopes)
    rest = 1 - share
    start = ((values - asymptotes * share) * rest / variances).sum(-1) / (rest**2 / variances).sum(-1)
    start = np.minimum(start.clip(0, 1)[..., None], asymptotes)  # it rises, or stays
    misfit = (values - start - (asymptotes - start) * share) ** 2
    # Where even the best curve misses by more than the measurement explains, the scatter is the training's own.
    scatter = max(1.0, float((misfit / variances).sum(-1).min()) / max(len(points) - 4, 1))
    loglikelihood = -0.5 * (misfit / variances).sum(-1) / scatter
    weights = np.exp(loglikelihood - loglikelihood.max()).ravel()
    ends = (start + (asymptotes - start) * _risen(np.array([float(end)]), middles, slopes)).ravel()
    order = np.argsort(ends)
    cumulative = np.cumsum(weights[order]) / weights.sum()
    low, value, high = np.interp([(1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2], cumulative, ends[order])
    noise = 1.645 * math.sqrt(scatter * float(variances[-1]))  # of the last evaluation itself
    low, high = float(value - math.hypot(value - low, noise)), float(value + math.hypot(high - value, noise))
    low, high = max(low, 0.0), min(high, 1.0)
    if high - low > _WIDEST:
        return f"the evaluations so far cannot tell: {low:.2f} to {high:.2f} at step {end:,}"
    return Forecast(end, float(value), low, high)


def _risen(steps: np.ndarray, middles: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """The share of the way from R_0 to A at some steps; 0 at step 0."""
    with np.errstate(divide="ignore"):
        return np.asarray(1 / (1 + (middles / steps) ** slopes))
