"""What a step of reinforcement learning says first, and its trend over starts."""

import json
from pathlib import Path

from titan_pt.components.reward_line import RewardLine


def test_figures_have_the_trend_of_the_last_20_rows_over_starts(tmp_path: Path) -> None:
    rows = [
        {"step": i, "reward_mean": 0.0 if i < 9 else 0.5, "accuracy_strict": 0.1, "completion_tokens_mean": 10.0 + i}
        for i in range(1, 20)
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = RewardLine(path)(rows[-1])  # the last row is written before it is said
    assert said == ["reward 0.500 (+0.444)", "accuracy 10.0% (+0.0)", "length 29 (+10)"]
    assert RewardLine(tmp_path / "none")(rows[0]) == ["reward 0.000", "accuracy 10.0%", "length 11"]
