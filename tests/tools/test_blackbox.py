"""tools.blackbox: what it prints of the bad steps of a run, and of a run without any."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import train_here, write_faulty

from titan_pt.components.black_box import decoded
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


def test_what_is_no_box_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("step-3-aa", "step-old-1"):
        (tmp_path / "blackbox" / name).mkdir(parents=True)
        (tmp_path / "blackbox" / name / "rank-0.json").write_text('{"rows": [{}, {"pieces": [{}]}]}')
    assert main([str(tmp_path)]) == 0
    assert "a row of 0 texts" in capsys.readouterr().out


def test_padding_is_no_text() -> None:
    tokens, positions = torch.tensor([[5, 6, 7, 6, 0, 0, 0]]), torch.tensor([[0, 1, 0, 1, 0, 0, 0]])
    tokenizer = SimpleNamespace(eos_id=0, decode=str)
    context = SimpleNamespace(config=SimpleNamespace(data=SimpleNamespace(sources=[])), tokenizer=tokenizer)
    batch = SimpleNamespace(tokens_BL=tokens, positions_BL=positions)
    (row,) = decoded(context, batch, None)  # type: ignore[arg-type]
    assert [piece["text"] for piece in row["pieces"]] == ["[5, 6]", "[7, 6]"]


def test_foreign_text_cannot_steer_a_terminal() -> None:
    assert printable("a\x1b]0;title\x07\x9b31m\nb") == "a\\x1b]0;title\\x07\\x9b31m\\nb"
