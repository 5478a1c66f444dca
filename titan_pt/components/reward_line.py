"""What a step of reinforcement learning says first: reward, accuracy and length of its completions, and their trend."""

from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from titan_pt.run.own_json import whole_rows

_FIGURES = {
    "reward_mean": ("reward {:.3f}", "{:+.3f}", 1),
    "accuracy_strict": ("accuracy {:.1f}%", "{:+.1f}", 100),
    "completion_tokens_mean": ("length {:.0f}", "{:+.0f}", 1),
}
_ROWS = 20
"""Logged steps whose later half is compared with the earlier one."""


class RewardLine:
    """Figures of the last row, each with its trend: the mean of the later half of the last 20 rows less the earlier's.

    Args:
        path: metrics.jsonl, for the rows of earlier starts.
    """

    def __init__(self, path: Path) -> None:
        earlier = [row for row in whole_rows(path)[:-1] if "reward_mean" in row]  # without the row itself
        self._rows = deque[Mapping[str, Any]](earlier, maxlen=_ROWS)

    def __call__(self, row: Mapping[str, Any]) -> list[str]:
        self._rows.append(row)
        return [
            f"{value.format(scale * row[key])}{self._trend(key, change, scale)}"
            for key, (value, change, scale) in _FIGURES.items()
            if key in row
        ]

    def _trend(self, key: str, change: str, scale: int) -> str:
        values = [scale * row[key] for row in self._rows if row.get(key) is not None]
        half = len(values) // 2
        if not half:
            return ""
        return f" ({change.format(sum(values[-half:]) / half - sum(values[:half]) / half)})"
