"""The figures of a run that people compare, and the keys in which runs differ."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from titan_pt.evaluation.intervals import wilson
from titan_pt.report.record import RunRecord, flat_config
from titan_pt.run.goodput import goodput_of

_OWN_KEYS = ("job.dump_folder", "job.config_file", "job.description")
"""Keys that name a run, and differ between any two."""
_SHARES = ("accuracy", "accuracy_official", "accuracy_lenient", "accuracy_loglikelihood")


@dataclass(frozen=True)
class Figure:
    """One number of a run, as it is shown."""

    name: str
    value: Callable[[RunRecord], float | None]
    text: Callable[[float], str]
    note: Callable[[RunRecord], str] = lambda run: ""
    """More, such as the step of a best value."""
    best: Callable[[list[float]], float] | None = None
    """Which one of several runs is best: min, max, or none of them."""

    @property
    def is_main(self) -> bool:
        """Whether it stays where there is little room."""
        return self.name in ("steps", "loss", "best val loss", "reward", "accuracy", "tokens/s")


@dataclass(frozen=True)
class Evaluation:
    """A value of a task that a run was evaluated on, with its 95% interval where the number of problems is known."""

    task: str
    name: str
    step: int
    value: float
    interval: tuple[float, float] | None
    problems: int | None
    best: float
    best_step: int


def short(value: float) -> str:
    """A number with four significant digits, and a unit of thousands where it is large: 0.6931, 12.3K, 4.5M."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "K")):
        if abs(value) >= limit:
            return f"{value / (1e3 if unit == 'K' else limit):.4g}{unit}"
    return f"{value:.4g}"


def share(value: float) -> str:
    """A share as percent."""
    return f"{100 * value:.1f} %"


def duration(seconds: float) -> str:
    """A time in its two largest units: "2 d 3 h", "3 h 12 min", "4 min", "7.1 s"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    for unit, name, below, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= unit:
            rest = int(seconds % unit // below)
            return f"{int(seconds // unit)} {name}{f' {rest} {smaller}' if rest else ''}"
    return "0 s"


def training_hours(run: RunRecord) -> list[float]:
    """Hours of training up to each row: steps times what one took, without saves, validations and pauses."""
    hours, before, found = 0.0, 0, []
    for row in run.rows:
        hours += max(row["step"] - before, 0) * row.get("step_seconds", 0.0) / 3600
        before = row["step"]
        found.append(hours)
    return found


def best_row(run: RunRecord, key: str, choose: Callable[..., Any] = min) -> dict[str, Any] | None:
    """The first row with the best value of a key."""
    rows = [row for row in run.rows if key in row]
    return choose(rows, key=lambda row: row[key]) if rows else None


def _last(key: str) -> Callable[[RunRecord], float | None]:
    """The last value; none where that is not finite."""

    def value(run: RunRecord) -> float | None:
        row = next((row for row in reversed(run.rows) if key in row), None)
        return row[key] if row and row["step"] >= run.not_finite.get(key, [0])[-1] else None

    return value


def _least(key: str) -> Callable[[RunRecord], float | None]:
    return lambda run: min(run.column(key), default=None)


def _most(key: str) -> Callable[[RunRecord], float | None]:
    return lambda run: max(run.column(key), default=None)


def _median(key: str) -> Callable[[RunRecord], float | None]:
    return lambda run: statistics.median(found) if (found := [v for v in run.column(key) if v]) else None


def _mean_accuracy(run: RunRecord) -> float | None:
    found = [evaluation.value for evaluation in evaluations(run) if evaluation.name == "accuracy"]
    return math.fsum(found) / len(found) if found else None


def _accuracy_note(run: RunRecord) -> str:
    found = [evaluation for evaluation in evaluations(run) if evaluation.name == "accuracy"]
    if len(found) == 1 and found[0].interval:
        low, high = found[0].interval
        return f"{found[0].task}, {100 * low:.1f} to {share(high)}"
    return ", ".join(evaluation.task for evaluation in found)


def _of_steps(run: RunRecord) -> str:
    return f"of {run.total_steps:,}" if run.total_steps else ""


def _at_best(key: str) -> Callable[[RunRecord], str]:
    return lambda run: f"step {row['step']:,}" if (row := best_row(run, key)) else ""


FIGURES: Sequence[Figure] = (
    Figure("steps", _last("step"), lambda v: f"{v:,.0f}", _of_steps),
    Figure("tokens", _last("tokens_seen"), short),
    Figure("time in training", lambda run: 3600 * max(training_hours(run), default=0) or None, duration),
    Figure("loss", _last("loss"), lambda v: f"{v:.4f}"),
    Figure("best val loss", _least("val_loss"), lambda v: f"{v:.4f}", _at_best("val_loss"), min),
    Figure("val loss", _last("val_loss"), lambda v: f"{v:.4f}", best=min),
    Figure("bits per byte", _last("val_bpb"), lambda v: f"{v:.4f}", best=min),
    Figure("reward", _last("reward_mean"), lambda v: f"{v:.3f}", best=max),
    Figure("accuracy", _mean_accuracy, share, _accuracy_note, max),
    Figure("tokens/s", _median("tokens_per_second"), short, lambda run: "median", max),
    Figure("MFU", _median("mfu"), share, lambda run: "median"),
    Figure("memory", _most("memory_gib"), lambda v: f"{v:.2f} GiB", lambda run: "most"),
    Figure("goodput", lambda run: goodput_of(run.seconds) if run.seconds else None, share),
    Figure("skipped steps", lambda run: _last("skipped_steps")(run) or None, lambda v: f"{v:.0f}"),
)


def evaluations(run: RunRecord) -> list[Evaluation]:
    """The last evaluation of each task, accuracy first."""
    names = sorted({key for row in run.rows for key in row if key.startswith("eval/") and key.count("/") >= 2})
    found = []
    for key in names:
        task, name = key.removeprefix("eval/").rsplit("/", 1)
        if name not in _SHARES and not name.startswith("pass_at_"):
            continue
        rows = [row for row in run.rows if key in row]
        last, best = rows[-1], max(rows, key=lambda row: row[key])
        count = int(last.get(f"eval/{task}/problems", 0))
        fits = count > 0 and 0 <= last[key] <= 1
        found.append(
            Evaluation(
                task,
                name,
                last["step"],
                last[key],
                wilson(last[key], count) if fits else None,
                count or None,
                best[key],
                best["step"],
            )
        )
    return found


def differing_keys(runs: Sequence[RunRecord]) -> dict[str, list[Any]]:
    """The keys of the configs whose values are not all the same, with the value of each run; None where it has none.

    A table that only some runs have, and all of these with the same values, is one row: `grpo.*`.
    """
    flat = [{**flat_config(run.config), "made by": run.made_by} for run in runs]
    keys = {key: None for config in flat for key in config if key not in _OWN_KEYS}
    with_rows = {key.rpartition(".")[0].rpartition(".")[0] for key in keys}
    found: dict[str, list[Any]] = {}
    for key in keys:
        values = [config.get(key) for config in flat]
        if all(value == values[0] for value in values) or (key in with_rows and [] in values):
            continue  # an empty list is no other value than the rows that others have in it
        table = key.partition(".")[0]
        lacking = [table not in run.config and key != "made by" for run in runs]
        with_table = [value for value, lacks in zip(values, lacking, strict=True) if not lacks]
        if any(lacking) and all(value == with_table[0] for value in with_table):
            counts = found.setdefault(f"{table}.*", [None if lacks else 0 for lacks in lacking])
            found[f"{table}.*"] = [None if count is None else count + 1 for count in counts]
        else:
            found[key] = values
    return {
        key: [f"{value} keys" if value is not None else None for value in values] if key.endswith(".*") else values
        for key, values in found.items()
    }
