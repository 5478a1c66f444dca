"""SIGTERM and SIGINT: the micro-batch ends, the unfinished step is dropped, a whole checkpoint is saved, exit code 75.

What then goes on is, to the last bit, the run that was never stopped.
"""

import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import forked
import pytest
from helpers import (
    assert_same_step,
    command,
    launch,
    losses,
    read_rows,
    telling,
    train,
    train_here,
    write_faulty,
    write_toml,
)

from titan_pt.components.checkpoint.steps import find_step
from titan_pt.run.exit_codes import Preempted

TABLES: dict[str, Any] = {
    "checkpoint": {"interval": 100},
    "validation": {"enable": True, "freq": 3, "steps": 1, "local_batch_size": 4},
}


def values(folder: Path) -> list[tuple[int, float, float | None]]:
    assert losses(folder / "run")
    return [(row["step"], row["loss"], row.get("val_loss")) for row in read_rows(folder / "run")]


def assert_same_end(one: Path, other: Path) -> None:
    assert values(one) == values(other)
    assert_same_step(one / "run" / "checkpoint" / "step-6", other / "run" / "checkpoint" / "step-6")


@pytest.fixture(autouse=True)
def _terminal() -> Iterator[None]:
    """Under nohup SIGHUP is ignored, and a run leaves it so; these tests are of one that has a terminal."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that was never stopped, on one rank."""
    folder = tmp_path_factory.mktemp("whole")
    assert train_here(write_faulty(folder, {}, **TABLES)) == 0
    return folder


@pytest.mark.parametrize(
    ("fault", "saved", "mode"),
    [
        ({"steps": [3]}, 2, "disabled"),
        ({"steps": [4], "signals": ["SIGINT"]}, 3, "async"),
        ({"steps": [3], "signals": ["SIGHUP"]}, 2, "async"),
        ({"steps": [6], "signals": ["SIGTERM", "SIGTERM", "SIGINT"]}, 5, "disabled"),
        ({"steps": [1], "during_validation": True}, 1, "disabled"),
        ({"steps": [2], "during_validation": True, "signals": ["SIGINT"]}, 3, "async"),
        ({"steps": [3], "during_validation": True}, 6, "disabled"),
    ],
    ids=["TERM", "INT", "HUP", "three", "validation", "INT in validation", "last validation"],
)
def test_a_stopped_run_goes_on_as_if_it_had_not_been(
    tmp_path: Path, whole: Path, fault: dict[str, Any], saved: int, mode: str
) -> None:
    tables = {**TABLES, "checkpoint": {"interval": 2, "keep_latest_k": 1, "async_mode": mode}}
    config = write_faulty(tmp_path, {"kind": "signal", **fault}, **tables)
    assert train_here(config) == 75
    assert [path.name for path in (tmp_path / "run" / "checkpoint").iterdir()] == [f"step-{saved}"]
    assert train_here(config, "--fault.kind", "none") == 0
    assert_same_end(whole, tmp_path)
    if saved == 6:  # its last row was written on the way in; a finished run is not changed by another start
        assert train_here(config, "--fault.kind", "none") == 0
        assert_same_end(whole, tmp_path)


@pytest.mark.parametrize(
    ("fault", "flags"),
    [
        ({"steps": [1]}, []),
        ({"steps": [3]}, ["--checkpoint.enable=false"]),
        ({"steps": [3]}, ["--checkpoint.load_only"]),
    ],
)
def test_nothing_to_go_on_from_is_143(tmp_path: Path, fault: dict[str, Any], flags: list[str]) -> None:
    config = write_faulty(tmp_path, {"kind": "signal", **fault})
    assert train_here(config, *flags) == 143
    assert not list((tmp_path / "run").glob("checkpoint/*"))


def test_a_stop_right_after_a_resume_is_75(tmp_path: Path) -> None:
    config = write_faulty(tmp_path, {"kind": "signal", "steps": [3]}, job=telling(tmp_path))
    assert train_here(config) == 75
    told = "75 stopped by a signal, or no data came; the same command goes on from the checkpoint in "
    assert (tmp_path / "told").read_text() == f"{told}{tmp_path / 'run'}\n"
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "checkpoint").rglob("*")}
    assert train_here(config) == 75
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "checkpoint").rglob("*")} == files


def test_a_resumed_run_that_is_stopped_before_it_goes_on_is_75(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_toml(tmp_path)
    monkeypatch.setattr("titan_pt.train.build_trainer", stopped)
    assert train_here(config) == 143, "a new run has nothing to go on from"
    monkeypatch.undo()
    assert train_here(config) == 0
    monkeypatch.setattr("titan_pt.train.build_trainer", stopped)
    assert train_here(config) == 75
    assert train_here(config, "--checkpoint.enable=false") == 143


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells which signals a process handles")
@pytest.mark.parametrize("ranks", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_signal_during_the_imports_of_a_resumed_run_is_75(tmp_path: Path, ranks: int) -> None:
    config = write_toml(tmp_path, training={"steps": 2})
    assert train_here(config) == 0
    process = subprocess.Popen(command(config, ranks=ranks), stderr=subprocess.PIPE, text=True)
    status = Path(f"/proc/{process.pid}/status")
    handled = 1 << (signal.SIGTERM - 1)
    wait_until(lambda: bool(int(re.findall(r"SigCgt:\s*(\w+)", status.read_text())[0], 16) & handled))
    process.send_signal(signal.SIGTERM)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 75 and "the same command goes on from the checkpoint" in error.splitlines()[-1], error


def stopped(*_args: Any) -> None:
    raise Preempted


def test_a_save_that_fails_on_leaving_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from titan_pt.components.checkpoint import checkpointer as checkpoint

    def full(*_arguments: Any, **_options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.dcp, "save", full)
    assert train_here(write_faulty(tmp_path, {"kind": "signal", "steps": [3]})) == 1
    assert "step 2 could not be saved" in capsys.readouterr().err.strip().splitlines()[-1]


def start(config: Path, ranks: int) -> forked.Popen:
    """A run that has begun to train."""
    log = config.parent / "log"
    with log.open("w") as file:
        process = forked.Popen(command(config, ranks=ranks), stderr=file)
    wait_until(lambda: (config.parent / "run" / "metrics.jsonl").exists() and bool(read_rows(config.parent / "run")))
    assert process.poll() is None, log.read_text()
    return process


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("ranks", "number"),
    [
        (0, signal.SIGTERM),
        pytest.param(1, signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(0, signal.SIGUSR1, marks=pytest.mark.slow),
        (1, signal.SIGUSR1),
    ],
)
def test_a_signal_from_outside(tmp_path: Path, ranks: int, number: signal.Signals) -> None:
    """To `python -m titan_pt.train`, and to the launcher; SIGUSR1 is Slurm's warning."""
    process = start(write_toml(tmp_path, training={"steps": 10000}), ranks)
    process.send_signal(number)
    assert process.wait(60) == 75
    text = (tmp_path / "log").read_text()
    assert "the same command goes on from the checkpoint" in text and "Traceback" not in text
    done = len(losses(tmp_path / "run"))
    assert (tmp_path / "run" / "checkpoint" / f"step-{done}").is_dir(), "the last finished step was saved"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
def test_workers_of_a_killed_launcher_save_and_leave(tmp_path: Path) -> None:
    process = start(write_toml(tmp_path, training={"steps": 10000}), ranks=1)
    process.kill()
    process.wait()
    wait_until(lambda: "the same command goes on from the checkpoint" in (tmp_path / "log").read_text())
    assert find_step(tmp_path / "run" / "checkpoint")


@pytest.mark.slow
def test_two_ranks_stop_together(tmp_path: Path) -> None:
    """A signal to one rank only, then one to the launcher during a validation and a second one at once."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert train(write_faulty(whole, {}, **TABLES), ranks=2).code == 0
    config = write_faulty(stopped, {"kind": "signal", "steps": [3], "rank": 1}, **TABLES)
    first = launch(config, ranks=2)
    assert first.code == 75, first.stderr
    assert "Traceback" not in first.stderr
    again = ("--fault.during_validation", "--fault.to_parent", "--fault.rank", "0", "--fault.steps=[1]")
    second = launch(config, *again, '--fault.signals=["SIGTERM", "SIGINT"]', ranks=2)
    assert second.code == 75, second.stderr
    assert [path.name for path in (stopped / "run" / "checkpoint").iterdir()] != ["step-2"]
    third = train(config, "--fault.kind", "none", ranks=2)
    assert third.code == 0, third.stderr
    assert_same_end(whole, stopped)
    shutil.rmtree(stopped)
