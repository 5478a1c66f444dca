"""tools.blackbox: what it prints of the bad steps of a run, and of a run without any."""

from pathlib import Path

import pytest
from helpers import train_here, write_faulty

from titan_pt.tools.blackbox import main, printable


def test_a_bad_step_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With its texts, the norms of each kind, and no more boxes than training.black_boxes."""
    config = write_faulty(
        tmp_path, {"kind": "nan_loss", "steps": [2, 3]}, training={"steps": 3, "black_boxes": 1, "local_batch_size": 8}
    )
    assert train_here(config) == 0
    capsys.readouterr()
    assert main([str(tmp_path / "run"), "--rows", "1", "--layers", "2"]) == 0
    shown = capsys.readouterr().out
    first, second = shown.split("== step-")[1:]
    assert first.startswith("2-") and "loss or gradient is not finite; answer: skip" in first
    assert "documents: arithmetic:" in first and "[arithmetic, " in first
    for part in ("gradients", "weights", "optimizer", "activations"):
        assert f"-- {part}: " in first and f"-- {part}: " not in second, "the second has names alone"
    assert "documents: arithmetic:" in second
    assert main([str(tmp_path / "run"), "--step", "1"]) == 0
    assert "no bad step of step 1 is recorded" in capsys.readouterr().out
    assert main([str(tmp_path / "none")]) == 2


def test_foreign_text_cannot_steer_a_terminal() -> None:
    assert printable("a\x1b]0;title\x07\x9b31m\nb") == "a\\x1b]0;title\\x07\\x9b31m\\nb"
