"""A loss or gradient that is not finite is never applied, is counted and named, and ends the run when it stays."""

from pathlib import Path

import pytest
import torch
from helpers import losses, read_json, read_rows, read_tensors, train, train_here, write_faulty


@pytest.mark.parametrize(
    ("kind", "implementation"),
    [("nan_loss", "fused"), ("nan_gradient", "fused"), ("nan_gradient", "foreach"), ("nan_loss", "for-loop")],
)
def test_a_bad_step_changes_nothing_but_the_data_position(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, implementation: str
) -> None:
    config = write_faulty(
        tmp_path,
        {"kind": kind, "steps": [3]},
        metrics={"log_freq": 100},  # step 3 is neither logged nor looked at by itself
        checkpoint={"interval": 1, "keep_latest_k": 0},
        optimizer={"implementation": implementation},
    )
    assert train_here(config) == 0
    folder = tmp_path / "run" / "checkpoint"
    before, bad, after = (read_tensors(folder / f"step-{step}") for step in (2, 3, 4))
    for name, tensor in before.items():
        assert torch.equal(bad[name], tensor), name
        assert torch.isfinite(after[name]).all(), name
    assert {float(value) for name, value in after.items() if name.endswith(".step")} == {3.0}
    assert read_json(folder / "step-2", "data") != read_json(folder / "step-3", "data")
    counts = [read_json(folder / f"step-{step}", "train")["state"]["skipped_steps"] for step in (2, 3, 6)]
    assert counts == [0, 1, 1], "counted where it is saved, logged or not"
    assert [row["skipped_steps"] for row in read_rows(tmp_path / "run")] == [0, 1]
    error = capsys.readouterr().err
    assert error.count("step 3: loss or gradient is not finite; weights are unchanged") == 1
    assert "arithmetic:" in error, "its documents are named"


def test_the_run_gives_up_and_keeps_what_it_had(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_faulty(
        tmp_path,
        {"kind": "nan_loss", "steps": [3, 4, 5, 6]},
        training={"max_skipped_steps": 2},
        checkpoint={"interval": 1, "keep_latest_k": 0},
    )
    assert train_here(config) == 70
    error = capsys.readouterr().err
    assert error.strip().splitlines()[-1].startswith("gave up: 3 steps had a non-finite loss or gradient")
    assert "Traceback" not in error
    rows = read_rows(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["loss"] for row in rows[2:]] == [None] * 3
    newest = tmp_path / "run" / "checkpoint" / "step-4"
    assert newest.is_dir() and not (tmp_path / "run" / "checkpoint" / "step-5").exists()
    assert train_here(config) == 70, "the count goes on over a restart"
    assert train_here(config, "--fault.kind", "none") == 0
    assert read_rows(tmp_path / "run")[-1]["skipped_steps"] == 2


@pytest.mark.slow
def test_one_ranks_nan_is_skipped_on_all(tmp_path: Path) -> None:
    config = write_faulty(
        tmp_path,
        {"kind": "nan_gradient", "steps": [2], "rank": 1},
        training={"steps": 4, "max_skipped_steps": 1},
        checkpoint={"interval": 1, "keep_latest_k": 0},
    )
    done = train(config, ranks=2)
    assert done.code == 0, done.stderr
    assert losses(tmp_path / "run").keys() == {1, 2, 3, 4}
    one, two, three = (read_tensors(tmp_path / "run" / "checkpoint" / f"step-{step}") for step in (1, 2, 3))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert all(torch.isfinite(three[name]).all() for name in three)
    assert "[rank1]" in done.stderr, "each rank names its documents, whatever LOG_RANK says"
