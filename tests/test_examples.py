"""Each experiment of examples/, as its first lines say it is run, and what is special about it."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import tomllib
from helpers import ROOT, read_json, read_rows, train

FOLDER = ROOT / "examples"
_SHARED = {"own_rl"}  # what others extend


def learnt(run: Path) -> None:
    rows = read_rows(run)
    assert rows[-1]["loss"] < 0.75 * rows[0]["loss"]


def text(run: Path) -> None:
    learnt(run)
    assert {"source/notes/tokens", "source/letters/tokens"} <= read_rows(run)[-1].keys()


def reward(run: Path) -> None:
    means = [row["reward_mean"] for row in read_rows(run) if "reward_mean" in row]
    assert means[-1] > 0.5 > 0.1 > means[0]


def task(run: Path) -> None:
    accuracy = [row["eval/digits/accuracy"] for row in read_rows(run) if "eval/digits/accuracy" in row]
    assert accuracy[-1] > accuracy[0]


def model(run: Path) -> None:
    learnt(run)
    assert read_json(run / "checkpoint" / "step-50", "train")["identity"]["model"]["width"] == 48


def sink(run: Path) -> None:
    with (run / "metrics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == [str(row["step"]) for row in read_rows(run)]


CHECKS: dict[str, Callable[[Path], None]] = {
    "own_text": text,
    "own_reward": reward,
    "own_task": task,
    "own_model": model,
    "own_optimizer": learnt,
    "own_sink": sink,
}


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.toml")), ids=lambda file: file.stem)
def test_each_runs_and_does_what_it_says(file: Path, tmp_path: Path) -> None:
    if file.stem in _SHARED:
        return
    header = file.read_text().splitlines()
    assert f"#     titan-pt train {file.name}" in header and any(line.startswith("# Hardware: ") for line in header)
    config = tomllib.loads(file.read_text())
    assert config["job"]["dump_folder"] == f"outputs/{file.stem}"
    assert config["experimental"]["custom_import"] == file.stem, "the module beside it"
    run = tmp_path / "run"
    done = train(Path(file.name), "--job.dump_folder", str(run), cwd=FOLDER)
    assert done.code == 0, done.stderr
    assert "Traceback" not in done.stderr
    CHECKS[file.stem](run)
