"""Which curves a report draws, and their points."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from titan_pt.report.figures import training_hours
from titan_pt.report.record import RunRecord

MOST_POINTS = 20_000
"""Points of one curve of all runs together; with more rows a point is the mean of several."""
_X_KEYS = ("step", "time", "tokens_seen", "trained_tokens")


@dataclass
class Chart:
    """Curves in one frame."""

    title: str
    unit: str
    keys: list[str] = field(default_factory=list)
    percent: bool = False
    more: bool = False
    """Below the fold: drawn when the reader opens it."""

    def label(self, key: str) -> str:
        """The name of a curve in its frame."""
        parts = key.split("/")
        if len(self.keys) == 1:
            return key
        if parts[0] == "source":
            return "/".join(parts[1:-1])
        return "/".join(parts[1:]) if parts[0] in ("eval", "seconds") else key


def charts(runs: Sequence[RunRecord]) -> list[Chart]:
    """The charts of what the runs have, those that are looked at first at the front."""
    keys = {key: None for run in runs for row in run.rows for key in row if key not in _X_KEYS}
    left = list(keys)

    def take(title: str, unit: str, *wanted: str, percent: bool = False, more: bool = False) -> Chart:
        """A chart of the keys that are left and fit a pattern: `a/*/b` for any middle."""
        found = [key for pattern in wanted for key in left if fnmatchcase(key, pattern)]
        left[:] = [key for key in left if key not in found]
        return Chart(title, unit, found, percent, more)

    made = [
        take("Reward", "mean of a step", "reward_mean"),
        take("Accuracy in training", "share of completions", "accuracy_strict", "accuracy_lenient", percent=True),
        take("Accuracy of evaluations", "share of problems", "eval/*/accuracy", "eval/*/pass_at_*", percent=True),
        take("Loss", "of the policy" if "reward_mean" in keys else "nats per token", "loss", "val_loss"),
        take("Loss by source", "nats per token", "source/*/loss"),
        take("Bits per byte", "of the validation", "val_bpb"),
        take("Throughput", "tokens per second", "tokens_per_second", "rollout_tokens_per_second"),
        take("Memory", "GiB, the most so far", "memory_gib"),
        take("Model FLOPs utilisation", "of the device's peak", "mfu", percent=True),
        take("Goodput", "share of all time", "goodput", percent=True),
        take("Learning rate", "", "lr", "lr/*"),
        take("Gradient norm", "before clipping", "grad_norm"),
        take("Completions", "tokens, mean", "completion_tokens_mean"),
        take("Seconds of a step", "s", "step_seconds", "data_seconds", "seconds/*", more=True),
        take("Other values of evaluations", "", "eval/*/accuracy_*", more=True),
        take("Problems of evaluations", "", "eval/*/problems", more=True),
        take("Passes over the sources", "epochs", "source/*/epochs", more=True),
        take("Tokens by source", "tokens", "source/*/tokens", more=True),
    ]
    made += [Chart(key, "", [key], more=True) for key in left]
    return [chart for chart in made if chart.keys]


def points(run: RunRecord, keys: Sequence[str], most: int) -> dict[str, list[float | None]]:
    """The columns of a run by key, with `step`, `tokens` and `hours` for the axes; null where a row has no value.

    Args:
        most: points of a column; of more rows, each point is the mean of several that follow each other, at the last
            one's place.
    """
    rows: list[dict[str, Any]] = [
        {**row, "hours": hours, "tokens": row.get("tokens_seen", 0)}
        for row, hours in zip(run.rows, training_hours(run), strict=True)
    ]
    size = rows_a_point(run, most)
    groups = [rows[i : i + size] for i in range(0, len(rows), size)]
    found: dict[str, list[float | None]] = {key: [group[-1][key] for group in groups] for key in ("step", "tokens")}
    found["hours"] = [_rounded(group[-1]["hours"]) for group in groups]
    for key in keys:
        column = [_mean([row[key] for row in group if key in row]) for group in groups]
        if any(value is not None for value in column):
            found[key] = column
    return found


def rows_a_point(run: RunRecord, most: int) -> int:
    """How many rows of a run are one point of its curves."""
    return max(-(-len(run.rows) // most), 1)


def _mean(values: list[float]) -> float | None:
    return _rounded(sum(values) / len(values)) if values else None


def _rounded(value: float) -> float:
    """Six significant digits, which no screen tells from the value."""
    return float(f"{value:.6g}")
