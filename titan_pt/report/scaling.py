"""Loss over compute of several runs: a power law through them, and what it says of a larger one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from titan_pt.config.errors import ConfigError

LEAST_RUNS = 3
_FLATTEST = 700.0
"""The logarithm of a scale that is still a number."""
_GRID = 100


@dataclass(frozen=True)
class Prediction:
    """The loss of a run of so much compute, with the 95% interval in which a further run would fall."""

    flops: float
    loss: float
    low: float
    high: float


@dataclass(frozen=True)
class PowerLaw:
    """loss = floor + (scale / flops)^exponent (Hestness et al. 2017, https://arxiv.org/abs/1712.00409, eq. 1).

    Found by least squares of the losses. Intervals hold every floor that the F-test at 5% does not reject, so that what
    so few runs cannot tell widens them.
    """

    floor: float
    exponent: float
    scale: float
    exponent_interval: tuple[float, float]
    has_floor: bool
    """Whether the floor was fitted; three runs cannot tell one, and theirs is 0."""
    spread: float
    """Standard deviation of the runs around the law."""
    _admitted: tuple["_Line", ...]
    _t: float

    def __call__(self, flops: float) -> float:
        """The loss that the law has at so much compute."""
        return self.floor + (self.scale / flops) ** self.exponent

    def predict(self, flops: float) -> Prediction:
        """The loss of a further run."""
        bounds = [line.bounds(math.log(flops), self.spread, self._t) for line in self._admitted]
        return Prediction(flops, self(flops), max(0.0, min(low for low, _ in bounds)), max(high for _, high in bounds))


@dataclass(frozen=True)
class _Line:
    """log(loss - floor) = intercept + slope log(flops) at a given floor."""

    floor: float
    intercept: float
    slope: float
    covariance: np.ndarray
    """Of intercept and slope, for a spread of 1."""
    squares: float
    """Sum of the squared differences of the losses."""

    def bounds(self, log_flops: float, spread: float, t: float) -> tuple[float, float]:
        """Where a further run would fall if this were the floor."""
        x = np.array([1.0, log_flops])
        above = math.exp(self.intercept + self.slope * log_flops)
        half = t * spread * math.sqrt(above**2 * float(x @ self.covariance @ x) + 1)
        return self.floor + above - half, self.floor + above + half


def fit_power_law(flops: Sequence[float], losses: Sequence[float]) -> PowerLaw:
    """The law through runs of so much compute and these losses.

    Raises:
        ConfigError: they are too few, too alike, or have no such law.
    """
    distinct = len(set(flops))
    if distinct < LEAST_RUNS:
        raise ConfigError(f"RUN: {distinct} different amounts of compute; a law needs {LEAST_RUNS}, and a floor 4")
    log_flops, loss = np.log(np.array(flops, float)), np.array(losses, float)
    if not (loss > 0).all():
        raise ConfigError("RUN: a loss is not positive")
    has_floor = distinct > LEAST_RUNS
    lowest, lines = float(loss.min()), [_line(log_flops, loss, 0.0)]
    if has_floor:
        shares = np.linspace(0, 1, _GRID, endpoint=False).tolist()
        lines = [_line(log_flops, loss, lowest * share) for share in shares]
        best = min(range(_GRID), key=lambda i: lines[i].squares)
        around = np.linspace(shares[max(best - 1, 0)], shares[min(best + 1, _GRID - 1)], _GRID).tolist()
        lines += [_line(log_flops, loss, lowest * share) for share in around]
    found = min(lines, key=lambda line: line.squares)
    if found.slope >= 0 or found.intercept / -found.slope > _FLATTEST:
        raise ConfigError("RUN: the loss does not fall with compute; give runs of one recipe at several sizes")
    freedom = len(losses) - (3 if has_floor else 2)
    t, spread = student_t(freedom), math.sqrt(found.squares / freedom)
    most = found.squares + (t * spread) ** 2
    admitted = tuple(line for line in lines if line.squares <= most and line.slope < 0)
    halves = [t * spread * math.sqrt(line.covariance[1, 1]) for line in admitted]
    ends = [-line.slope + sign * half for line, half in zip(admitted, halves, strict=True) for sign in (-1, 1)]
    scale = math.exp(found.intercept / -found.slope)
    return PowerLaw(found.floor, -found.slope, scale, (min(ends), max(ends)), has_floor, spread, admitted, t)


def _line(log_flops: np.ndarray, loss: np.ndarray, floor: float) -> _Line:
    """Least squares of the losses: a difference of logarithms counts by (loss - floor)^2."""
    above = loss - floor
    weight = above**2
    total = float(weight.sum())
    middle = float(weight @ log_flops) / total
    around = log_flops - middle
    inverse = 1 / float(weight @ around**2)
    slope = float(weight * around @ np.log(above)) * inverse
    intercept = float(weight @ np.log(above)) / total - slope * middle
    covariance = inverse * np.array([[middle**2, -middle], [-middle, 1.0]])
    covariance[0, 0] += 1 / total
    squares = float((((np.log(above) - intercept - slope * log_flops) * above) ** 2).sum())
    return _Line(floor, intercept, slope, covariance, squares)


def student_t(freedom: int) -> float:
    """The 97.5% point of Student's t (Abramowitz and Stegun, 26.7.5; exact to the digits shown up to 4)."""
    z = 1.959964
    exact = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764}
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return exact.get(freedom) or z + first / freedom + second / freedom**2 + third / freedom**3
