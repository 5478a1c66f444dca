"""`job.leaderboard`: finished runs enter themselves, the best first, with what they differ in."""

import json
import shutil
from pathlib import Path

import pytest
from helpers import train_here, write_toml

from titan_pt.config.schema.job_config import JobConfig
from titan_pt.report.leaderboard import add_run


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


def finished(folder: Path) -> Path:
    """A run folder with all that a table needs."""
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"step": 1, "val_bpb": 1.5}\n')
    return folder


def enter(folder: Path, table: Path) -> None:
    add_run(JobConfig.model_validate({"job": {"dump_folder": str(folder), "leaderboard": str(table)}}))


@pytest.mark.parametrize(
    "content",
    [
        b"# My notes\n",
        b"\xff\xfe bad\n",
        b'<!-- runs: ["a", -->\n',
        b"<!-- runs: [1] -->\n",
        b"<!-- runs: " + b"[" * 100_000 + b"]" * 100_000 + b" -->\n",
    ],
    ids=["notes", "not UTF-8", "cut", "no names", "deep"],
)
def test_another_text_is_left_as_it_is(content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = tmp_path / "README.md"
    table.write_bytes(content)
    enter(finished(tmp_path / "a"), table)
    assert table.read_bytes() == content
    assert f"job.leaderboard: {table} is not written: " in caplog.text
    assert "remove the file" in caplog.text or "convert it to UTF-8" in caplog.text


def test_entries_without_a_run_and_repeats_leave_the_table(tmp_path: Path) -> None:
    finished(tmp_path / "b")
    (tmp_path / "emptied").mkdir()
    table = tmp_path / "table.md"
    table.write_text(json.dumps(["b", "./b", "emptied", "gone", "x" * 300, "\0"]).join(["<!-- runs: ", " -->\n"]))
    enter(finished(tmp_path / "a"), table)
    assert "2 finished runs" in table.read_text()
    table.write_text("\n")
    enter(tmp_path / "a", table)
    assert "1 finished run," in table.read_text(), "an empty file becomes one"
