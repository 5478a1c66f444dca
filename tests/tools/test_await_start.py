"""titan_pt.tools.await_start: what it waits for, for how long, and what it says."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from helpers import ROOT, train_here, write_toml
from tool_helpers import tool_here

from titan_pt.run.exit_codes import ExitCode
from titan_pt.tools import await_start


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """A run folder with a checkpoint."""
    assert train_here(write_toml(tmp_path / "start", training={"steps": 1})) == 0
    return tmp_path / "start" / "run"


def config_of(folder: Path, path: str) -> Path:
    return write_toml(folder / "later", checkpoint={"initial_load_path": path})


def wait(config: Path, *flags: str) -> int:
    return tool_here(await_start.main, "--job.config_file", config, *flags)


def test_existing_weights_end_the_wait(tmp_path: Path, start: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert wait(config_of(tmp_path, str(start)), "--minutes", "0") == ExitCode.DONE
    assert f"Starting weights are there: {start / 'checkpoint' / 'step-1'}" in capsys.readouterr().err


def test_late_weights_are_waited_for(
    tmp_path: Path, start: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(await_start, "POLL_SECONDS", 0.1)
    late = threading.Timer(0.3, start.rename, [tmp_path / "moved"])
    late.start()
    assert wait(config_of(tmp_path, str(tmp_path / "moved"))) == ExitCode.DONE
    error = capsys.readouterr().err
    assert "Waiting for starting weights, 10.0 minutes more" in error and "no such folder" in error


@pytest.mark.parametrize("path", ["nowhere", "empty", "damaged"])
def test_missing_weights_end_with_usage(
    tmp_path: Path, start: Path, capsys: pytest.CaptureFixture[str], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (start / "checkpoint" / "step-1" / "data.json").unlink()
    start.rename(tmp_path / "damaged")
    assert wait(config_of(tmp_path, path), "--minutes", "0.005") == ExitCode.USAGE
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("config error: no starting weights after 0.005 minutes: ")
    assert last.endswith("when the run that makes them is done, start this one again")


def test_runs_without_need_do_not_wait(tmp_path: Path, start: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert wait(write_toml(tmp_path / "first"), "--minutes", "0") == ExitCode.DONE
    config = config_of(tmp_path, "gone")
    assert wait(config, "--minutes", "0", "--job.dump_folder", str(start)) == ExitCode.DONE
    assert "the run goes on from them" in capsys.readouterr().err


def test_a_wrong_config_fails_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert wait(config_of(tmp_path, "nowhere"), "--training.stpes", "3") == ExitCode.USAGE
    assert "training.steps" in capsys.readouterr().err
    assert wait(config_of(tmp_path, "nowhere"), "--minutes", "soon") == ExitCode.USAGE


def test_a_signal_ends_the_wait(tmp_path: Path) -> None:
    """Also of process 1, which is not ended by a signal without a handler."""
    command = [sys.executable, "-m", "titan_pt.tools.await_start", "--job.config_file", str(config_of(tmp_path, "no"))]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env)
    assert process.stderr is not None
    while "Waiting for" not in process.stderr.readline():
        assert process.poll() is None
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == ExitCode.TERMINATED and time.monotonic() - started < 10
    process.stderr.close()


def test_it_starts_without_torch() -> None:
    """An init container waits with it: torch would cost it memory and seconds."""
    code = "import sys, titan_pt.tools.await_start; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
