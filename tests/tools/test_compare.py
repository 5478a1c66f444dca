"""tools.compare: the table in the terminal."""

import json
from pathlib import Path

import pytest
from report_helpers import write_run
from tool_helpers import tool_here

from titan_pt.tools.compare import main


def test_differing_keys_and_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs as rows where the terminal is wide, else side by side, as many as fit; sorted; as JSON."""
    runs = [write_run(tmp_path / name, 50, lr=lr) for name, lr in (("a", 1e-3), ("b", 3e-4), ("c", 1e-2))]
    monkeypatch.setenv("COLUMNS", "300")
    assert tool_here(main, *runs, "--sort", "optimizer.lr") == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:2] == ["run", "optimizer.lr"] and "training.steps" not in head and "val loss" in head
    assert [row.split()[:2] for row in rows] == [["b", "0.0003"], ["a", "0.001"], ["c", "0.01"]]
    monkeypatch.setenv("COLUMNS", "44")
    assert tool_here(main, *runs) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 44 and lines[0].split() == ["run", "a", "b"]
    assert lines[1].split() == ["optimizer.lr", "0.001", "0.0003"] and any(
        line.split() == ["run", "c"] for line in lines
    )
    monkeypatch.setenv("COLUMNS", "90")
    more = [write_run(tmp_path / f"run-{n}-of-many", 50, lr=n) for n in range(1, 9)]
    assert tool_here(main, *more) == 0
    table, left = capsys.readouterr().out.split("\n\n")
    assert len(table.splitlines()) == 9 and "best val loss" in table and "memory" in left and "MFU" not in table
    assert tool_here(main, *more, "--all") == 0
    shown = capsys.readouterr().out
    assert shown.count("memory") > 1 and max(map(len, shown.splitlines())) <= 90
    assert tool_here(main, *runs, "--json") == 0
    found = json.loads(capsys.readouterr().out)["runs"]
    assert [run["keys"] for run in found] == [{"optimizer.lr": 1e-3}, {"optimizer.lr": 3e-4}, {"optimizer.lr": 1e-2}]
    assert found[0]["figures"]["steps"] == 50 and found[0]["state"] == "finished"
    assert tool_here(main, *runs, "--sort", "optimizer.l") == 2
    assert "did you mean optimizer.lr?" in capsys.readouterr().err


def test_the_best_is_marked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    runs = [write_run(tmp_path / "a", 50), write_run(tmp_path / "b", 60)]
    (runs[1] / "metrics.jsonl").write_text('{"step": 60, "loss": 1.0, "val_loss": 0.5}\n')
    assert tool_here(main, *runs) == 0
    captured = capsys.readouterr()
    keys, figures = captured.out.split("\n\n")
    assert keys.splitlines()[1].split() == ["training.steps", "50", "60"] and not captured.err
    assert figures.count("0.5000*") == figures.count("*") == 2, "of two kinds of validation loss, and no other column"
