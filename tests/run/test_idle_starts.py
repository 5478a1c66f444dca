"""Starts without progress: the third in a row gives up, so that a cluster does not repeat a run for ever."""

import json
from pathlib import Path

import pytest
from helpers import launch, losses, train_here, write_faulty

from titan_pt.run.idle_starts import FILE, LIMIT, count_start
from titan_pt.run.signals import install_handlers


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


def test_a_run_that_is_stopped_at_once_again_and_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_faulty(tmp_path, {"kind": "signal", "steps": [3]})
    assert [train_here(config) for _ in range(4)] == [75, 75, 75, 70], "the first has finished two steps"
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("gave up: 3 starts in a row were stopped before they finished a step; ")
    assert "the last one: Stopped by a signal; its checkpoint is whole" in last
    install_handlers()
    assert train_here(config) == 75, "a person has looked"
    assert train_here(config, "--fault.kind", "none") == 0 and max(losses(tmp_path / "run")) == 6


@pytest.mark.slow
def test_all_ranks_give_up_together(tmp_path: Path) -> None:
    config = write_faulty(tmp_path, {"kind": "signal", "steps": [3], "rank": 1})
    assert launch(config, ranks=2).code == 75
    (tmp_path / "run" / FILE).write_text(json.dumps({"idle_starts": LIMIT - 1}))
    done = launch(config, ranks=2)
    assert done.code == 70, done.stderr
    assert done.stderr.count("gave up: 3 starts in a row") == 1 and "Traceback" not in done.stderr
