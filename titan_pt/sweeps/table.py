"""What a sweep ends in: its points side by side, the best one first."""

import math
from collections.abc import Sequence
from typing import Any

from titan_pt.components.metrics import FILE
from titan_pt.run.files import parse_json
from titan_pt.run.tool_files import read_lines
from titan_pt.sweeps.grid import Point
from titan_pt.sweeps.runs import state_of

_JUDGED = (("val_loss", min), ("accuracy_strict", max), ("reward_mean", max), ("loss", min))
"""Keys of rows that say how good a run is, the surest first, and which of its values counts."""


def table(points: Sequence[Point]) -> str:
    """Each point's values, how far it is and its best results."""
    rows = [_rows(point) for point in points]
    judged = [(key, best) for key, best in _JUDGED if any(key in row for run in rows for row in run)]
    found = [[_best(run, key, best) for key, best in judged] for run in rows]
    order = range(len(points))
    if judged:
        sign = 1 if judged[0][1] is min else -1
        order = sorted(order, key=lambda i: (math.isnan(found[i][0]), sign * found[i][0]))  # type: ignore[assignment]
    heads = [*points[0].values, "state", *(f"best {key}" for key, _ in judged)]
    lines = [heads]
    for i in order:
        numbers = ["" if math.isnan(value) else f"{value:.4g}" for value in found[i]]
        lines.append([*(_shown(value) for value in points[i].values.values()), state_of(points[i]), *numbers])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _rows(point: Point) -> list[dict[str, Any]]:
    try:
        return [row for line in read_lines(point.folder / FILE) if isinstance(row := parse_json(line), dict)]
    except (OSError, ValueError):  # none yet, or cut off by a crash
        return []


def _best(rows: list[dict[str, Any]], key: str, best: Any) -> float:
    values = [value for row in rows if isinstance(value := row.get(key), int | float)]
    return float(best(values)) if values else math.nan


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
