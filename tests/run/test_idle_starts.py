"""Starts without progress: the third in a row gives up, so that a cluster does not repeat a run for ever."""

import itertools
import json
import logging
from pathlib import Path

import pytest
from helpers import launch, losses, train_here, write_faulty, write_toml

from titan_pt.run.exit_codes import Stalled
from titan_pt.run.idle_starts import FILE, LIMIT, count_kill, count_start
from titan_pt.run.run_folder import lock_run_folder


def idle(folder: Path) -> str | None:
    return count_start(folder, "no data", first_step=4, last_step=4)


def test_the_third_idle_start_gives_up_and_a_new_count_begins(tmp_path: Path) -> None:
    for _ in range(2):
        assert [idle(tmp_path) for _ in range(LIMIT - 1)] == [None] * (LIMIT - 1)
        reason = idle(tmp_path)
        assert reason and "3 starts in a row" in reason and "the last one: no data; its checkpoint is whole" in reason


def test_a_step_is_progress(tmp_path: Path) -> None:
    for _ in range(3):
        assert [idle(tmp_path) for _ in range(LIMIT - 1)] == [None] * (LIMIT - 1)
        assert count_start(tmp_path, "no data", first_step=4, last_step=5) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"idle_starts": null}', '{"idle_starts": "x"}'])
def test_a_file_that_cannot_be_read_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    assert [bool(idle(tmp_path)) for _ in range(LIMIT)] == [False, False, True]


def test_a_file_that_cannot_be_written_does_not_cost_the_run(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    assert [idle(tmp_path) for _ in range(2 * LIMIT)] == [None] * 2 * LIMIT


def test_a_signal_never_makes_a_run_give_up(tmp_path: Path) -> None:
    """A cluster may stop a run before each step; nothing is wrong with it."""
    config = write_faulty(tmp_path, {"kind": "signal", "steps": [3]})
    assert [train_here(config) for _ in range(5)] == [75] * 5, "the first has finished two steps"
    assert train_here(config, "--fault.kind", "none") == 0 and max(losses(tmp_path / "run")) == 6


def test_a_run_without_data_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It gives up; a start that another run kept out is none of its own."""
    config = write_toml(tmp_path)
    assert train_here(config, "--training.steps", "2") == 0

    def no_data(*_args: object) -> None:
        raise Stalled("no data for 3 s")

    monkeypatch.setattr("titan_pt.train.build_trainer", no_data)
    with lock_run_folder(tmp_path / "run"):
        assert [train_here(config) for _ in range(LIMIT + 1)] == [75] * (LIMIT + 1)
    assert [train_here(config) for _ in range(LIMIT)] == [75, 75, 70]
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("gave up: 3 starts in a row were stopped before they finished a step; ")
    assert "the last one: no data for 3 s; its checkpoint is whole" in last
    assert train_here(config) == 75, "a person has looked"


def test_kills_without_progress_are_told_and_those_for_want_of_memory_give_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(logging.getLogger("titan_pt"), "warning", warnings.append)
    assert [count_kill(tmp_path, 5) for _ in range(LIMIT)] == [None] * LIMIT and not warnings, "one saved step 5"
    assert count_kill(tmp_path, 5) is None and "3 starts in a row were killed (exit code 137)" in warnings[0]
    memory = itertools.count(1)
    monkeypatch.setattr("titan_pt.run.idle_starts.oom_kills", lambda: next(memory))
    assert count_kill(tmp_path, 9) is None
    assert [bool(count_kill(tmp_path, 9)) for _ in range(LIMIT)] == [False, False, True]
    assert count_start(tmp_path, "no data", first_step=9, last_step=10) is None


def test_a_killed_start_is_seen_by_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_toml(tmp_path, training={"steps": 2})
    counted: list[int] = []
    monkeypatch.setattr("titan_pt.run.idle_starts.count_kill", lambda _folder, step: counted.append(step))
    assert train_here(config) == 0 and not (tmp_path / "run" / ".lock").exists()
    (tmp_path / "run" / ".lock").write_text("process 1 on another machine\n")
    assert train_here(config) == 0 and counted == [2]
    assert train_here(config) == 0 and counted == [2]


@pytest.mark.parametrize("folder", ["../shared", "LINK", "ABSOLUTE"])
def test_one_folder_of_checkpoints_has_one_run_at_a_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], folder: str
) -> None:
    """Whatever the run folders, and however each of them writes the folder's name."""
    checkpoints = tmp_path / "first" / "checkpoint"
    (tmp_path / "link").symlink_to(checkpoints, target_is_directory=True)
    named = {"../shared": "../first/checkpoint", "LINK": "../link", "ABSOLUTE": str(checkpoints)}[folder]
    config = write_toml(tmp_path, training={"steps": 2})
    flags = ("--job.dump_folder", str(tmp_path / "second"), "--checkpoint.folder", named)
    (tmp_path / "first").mkdir()
    with lock_run_folder(tmp_path / "first", checkpoints):
        assert train_here(config, *flags) == 1
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert last.startswith("failed: checkpoint.folder: ") and "is in use by another run, process" in last
        assert train_here(config, *flags, "--checkpoint.load_only") == 0, "it only reads"
    assert train_here(config, *flags) == 0
    assert [path.name for path in checkpoints.iterdir()] == ["step-2"]


def test_checkpoints_in_the_run_folder_itself(tmp_path: Path) -> None:
    assert train_here(write_toml(tmp_path, training={"steps": 2}), "--checkpoint.folder", ".") == 0


@pytest.mark.slow
def test_all_ranks_give_up_together(tmp_path: Path) -> None:
    config = write_faulty(tmp_path, {"kind": "stall", "steps": [3], "rank": 1})
    assert launch(config, ranks=2).code == 75
    (tmp_path / "run" / FILE).write_text(json.dumps({"idle_starts": LIMIT - 1}))
    done = launch(config, ranks=2)
    assert done.code == 70, done.stderr
    assert done.stderr.count("gave up: 3 starts in a row") == 1 and "Traceback" not in done.stderr
