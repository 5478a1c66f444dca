"""The panel at the end of a run: result, best validation, what to type next."""

import json
from pathlib import Path

import pytest

from titan_pt.config.schema.job import Job
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.trainers.end_panel import best_validation, show_end


def test_the_panel_tells_result_best_and_next_commands(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"step": step, "loss": 3.0 - step, "val_loss": loss} for step, loss in ((1, 2.5), (2, 2.25), (3, 2.4))]
    lines = [json.dumps(row) for row in rows]
    (tmp_path / "metrics.jsonl").write_text("\n".join([lines[0], '{"step": 2, "lo', *lines[1:], '{"step": 4, "lo']))
    with caplog.at_level("INFO", "titan_pt"):
        show_end(JobConfig(job=Job(dump_folder=str(tmp_path))), 61.0, 0.5)
    told = "\n".join(caplog.messages)
    assert "step 3: loss 0.0000, validation loss 2.4000" in told and "val_loss 2.2500 at step 2" in told
    assert "01:01, goodput 50.0%" in told and f"generate {tmp_path}" in told and "report" in told


def test_an_accuracy_counts_before_the_loss() -> None:
    rows = [{"step": 1, "val_loss": 1.0, "eval/sums/accuracy": 0.2}, {"step": 2, "eval/sums/accuracy": 0.4}]
    assert best_validation(rows) == ("eval/sums/accuracy", rows[1])
    assert best_validation([{"step": 1}]) is None
