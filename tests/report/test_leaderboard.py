"""`job.leaderboard`: finished runs enter themselves, the best first, with what they differ in."""

import shutil
from pathlib import Path

import pytest
from helpers import train_here, write_toml


def run_of(folder: Path, name: str, lr: float, leaderboard: Path, **tables: dict[str, object]) -> int:
    return train_here(
        write_toml(
            folder / name,
            job={"dump_folder": str(folder / "runs" / name), "leaderboard": str(leaderboard)},
            optimizer={"lr": lr},
            training={"steps": 3},
            validation={"enable": True, "freq": 3, "steps": 1},
            **tables,
        )
    )


def test_each_run_enters_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "runs" / "speed.md"
    assert run_of(tmp_path, "a|b", 1e-9, table) == 0
    first = table.read_text()
    assert "# speed: 1 finished run," in first and "optimizer.lr" not in first, "nothing to differ from"
    capsys.readouterr()
    assert run_of(tmp_path, "good", 1e-2, table) == 0
    assert f"Leaderboard {table}: number 1 of 2" in capsys.readouterr().err
    lines = [line for line in table.read_text().splitlines() if line.startswith("|")]
    assert lines[0].split(" | ")[1:5] == ["run", "bits per byte", "val loss", "tokens/s"]
    assert lines[0].endswith("| optimizer.lr |") and lines[2].startswith("| 1 | good | ")
    assert lines[3].startswith(r"| 2 | a\|b | ") and lines[3].endswith("| 1e-09 |")
    shutil.rmtree(tmp_path / "runs" / "a|b")
    assert run_of(tmp_path, "good", 1e-2, table) == 0, "a finished run that is started again"
    assert "1 finished run" in table.read_text()


def test_a_table_that_cannot_be_written_costs_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("no folder")
    assert run_of(tmp_path, "run", 1e-3, tmp_path / "file" / "speed.md") == 0
    assert "job.leaderboard: " in capsys.readouterr().err
