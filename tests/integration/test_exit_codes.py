"""The exit codes, by the command line and by the launcher; the reason of a failure is the last line on stderr."""

import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import forked
import pytest
from helpers import command, launch, losses, read_rows, run, train, train_here, write_faulty, write_toml

from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.grpo import GrpoConfig, Rollout
from titan_pt.run.run_folder import lock_run_folder

SPENT = json.dumps({"text": "abcdefgh " * 20}) + "\n"

CASES: dict[str, tuple[dict[str, Any], list[str], int, str]] = {
    "done": ({}, [], 0, "Training is done at step 3"),
    "failed": ({"kind": "raise", "steps": [2]}, [], 1, "RuntimeError: the fault has two lines"),
    "mistake": ({}, ["--training.stpes", "3"], 2, "config error: "),
    "bad resume": ({}, ["--checkpoint.load_step", "9"], 2, "config error: checkpoint.load_step = 9"),
    "gave up": ({"kind": "nan_loss", "steps": [1, 2]}, ["--training.max_skipped_steps", "1"], 70, "gave up: 2 steps"),
    "preempted": ({"kind": "signal", "steps": [2]}, [], 75, "goes on from the checkpoint"),
    "terminated": ({"kind": "signal", "steps": [1]}, [], 143, "before there was a checkpoint"),
}


@pytest.mark.parametrize("name", CASES)
def test_codes_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    fault, flags, code, words = CASES[name]
    assert train_here(write_faulty(tmp_path, fault, training={"steps": 3}), *flags) == code
    assert words in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    "name", ["preempted", *(pytest.param(n, marks=pytest.mark.slow) for n in ("gave up", "terminated"))]
)
def test_codes_of_the_launcher(tmp_path: Path, name: str) -> None:
    fault, flags, code, words = CASES[name]
    done = launch(write_faulty(tmp_path, fault, training={"steps": 3}), *flags, ranks=1)
    assert done.code == code and words in done.last_line, done.stderr


def test_the_rank_that_failed_is_named_and_not_those_that_lost_it(tmp_path: Path) -> None:
    told = f"sh -c 'env | grep TITAN_PT_ > {tmp_path}/told'"
    config = write_faulty(tmp_path, {"kind": "raise", "steps": [2], "rank": 1}, job={"notify": told})
    done = launch(config, ranks=2)
    assert done.code == 1, done.stderr
    assert done.last_line.startswith("failed: rank 1 failed in step 2: RuntimeError: the fault has two lines (")
    assert done.stderr.count("Traceback") == 1 and done.stderr.count("failed: ") == 1, done.stderr
    known = (tmp_path / "told").read_text().splitlines()
    folder = tmp_path / "run"
    assert {"TITAN_PT_CODE=1", f"TITAN_PT_REASON={done.last_line}", f"TITAN_PT_FOLDER={folder}"} <= {*known}
    log = (folder / "log.txt").read_text().splitlines()
    assert log[-1] == done.last_line and sum("Traceback" in line for line in log) == 1, "of all ranks, and the launcher"


@pytest.mark.parametrize(
    ("kind", "code", "reason"),
    [
        ("mistake", 2, "config error: fault.kind: a mistake that one rank found"),
        pytest.param("give_up", 70, "gave up: one rank had enough", marks=pytest.mark.slow),
    ],
)
def test_the_reason_of_one_rank_is_told_once_and_last(tmp_path: Path, kind: str, code: int, reason: str) -> None:
    done = launch(write_faulty(tmp_path, {"kind": kind, "steps": [2], "rank": 1}), ranks=2)
    assert (done.code, done.last_line, done.stderr.count(reason)) == (code, reason, 1), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("rank", [1, -1], ids=["one rank", "all ranks"])
def test_plain_torchrun_tells_the_reason_once(tmp_path: Path, rank: int) -> None:
    config = write_faulty(tmp_path, {"kind": "mistake", "steps": [2], "rank": rank})
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local_addr", "127.0.0.1"]
    done = run([*torchrun, "--nproc_per_node", "2", "-m", "titan_pt.train", "--job.config_file", str(config)])
    assert done.code == 1 and done.stderr.count("a mistake that one rank found") == 1, done.stderr


FROZEN = {"kind": "signal", "signals": ["SIGSTOP"]}


@pytest.mark.parametrize(
    ("fault", "ranks", "where", "why"),
    [
        ({"kind": "sleep", "steps": [3]}, 2, "step 3", r"it is in .*/faults.py:\d+ in happen"),
        ({**FROZEN, "steps": [2], "during_validation": True}, 2, "the validation of step 2", "the process was stopped"),
        pytest.param({**FROZEN, "steps": [3]}, 1, "step 3", "the process was stopped", marks=pytest.mark.slow),
    ],
    ids=["stuck", "frozen in a validation", "frozen alone"],
)
def test_the_rank_that_hangs_is_named(tmp_path: Path, fault: dict[str, Any], ranks: int, where: str, why: str) -> None:
    limits = {"train_timeout_seconds": 3, "grace_seconds": 1}
    validation = {"enable": True, "freq": 2, "steps": 1, "local_batch_size": 4}
    config = write_faulty(tmp_path, {"rank": ranks - 1, **fault}, comm=limits, validation=validation)
    done = launch(config, ranks=ranks)
    assert done.code == 1, done.stderr
    said = rf"failed: rank {ranks - 1} hangs in {where}: no progress for \d+ s, comm.train_timeout_seconds = 3; {why}"
    assert re.match(said, done.last_line), done.stderr
    assert losses(tmp_path / "run").keys() >= {1}, "the rows are there"
    stacks = (tmp_path / "run" / "comm_traces" / f"stacks-rank-{ranks - 1}.txt").read_text()
    assert "in _one_step" in stacks and stacks.count("hread 0x") > 1, "of all threads"


def test_a_run_without_a_launcher_has_a_watcher_of_its_own(tmp_path: Path) -> None:
    limits = {"train_timeout_seconds": 2, "init_timeout_seconds": 20}  # the watcher comes after a tenth of that
    config = write_faulty(tmp_path, {**FROZEN, "steps": [80]}, comm=limits, training={"steps": 10**6})  # and is there
    done = train(config)
    assert done.code == 1 and done.last_line.startswith("failed: rank 0 hangs in step 80: "), done.stderr


# Rank 1 hangs in its part of a save in the background.
HANGING_SAVE = """
import time
import faults
from titan_pt.components.checkpoint import checkpointer as checkpoint
from titan_pt.run.signals import stop_requested

write = checkpoint.Checkpointer._write_tensors

def write_or_hang(self, *arguments):
    while self._world.rank == 1 and not stop_requested():
        time.sleep(0.1)
    return write(self, *arguments)

checkpoint.Checkpointer._write_tensors = write_or_hang
"""


def test_a_failed_rank_does_not_wait_for_a_save_of_one_that_hangs(tmp_path: Path) -> None:
    (tmp_path / "hanging.py").write_text(HANGING_SAVE)
    checkpoint = {"interval": 2, "async_mode": "async"}
    config = write_faulty(tmp_path, {"kind": "raise", "steps": [3], "rank": 0}, checkpoint=checkpoint)
    done = launch(config, "--experimental.custom_import", "hanging", ranks=2, cwd=tmp_path, timeout=60)
    assert done.code == 1, done.stderr
    assert done.last_line.startswith("failed: rank 0 failed in step 3: RuntimeError: the fault has two lines")


def test_a_rank_that_is_slow_in_a_validation_is_waited_for(tmp_path: Path) -> None:
    config = write_faulty(
        tmp_path,
        {"kind": "work", "seconds": 4.0, "steps": [2], "rank": 1, "during_validation": True},
        comm={"train_timeout_seconds": 2, "grace_seconds": 1},
        validation={"enable": True, "freq": 2, "steps": 1, "local_batch_size": 4},
    )
    done = launch(config, ranks=2)
    assert done.code == 0, done.stderr


def test_spent_data_are_an_end_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "few.jsonl").write_text(SPENT * 40)
    sources = [{"name": "few", "path": str(tmp_path / "few.jsonl"), "max_epochs": 1.0}]
    config = write_toml(tmp_path, data={"sources": sources, "num_streams": 1}, training={"global_batch_size": 4})
    assert train_here(config, "--training.steps", "1000") == 0
    last = read_rows(tmp_path / "run")[-1]["step"]
    assert 1 < last < 1000 and (tmp_path / "run" / "checkpoint" / f"step-{last}").is_dir()


# Each folder that a run writes to, and the key that names it.
FOLDERS = {
    "job.dump_folder": "run",
    "checkpoint.folder": "run/checkpoint",
    "metrics.save_tb_folder": "run/tb",
    "profiling.save_traces_folder": "run/profile_traces",
    "profiling.save_memory_snapshot_folder": "run/memory_snapshot",
    "checkpoint.export_hf_interval": "run/hf",
}
WRITES_ALL = (
    *("--metrics.enable_tensorboard", "--profiling.enable_profiling", "--profiling.enable_memory_snapshot"),
    "--checkpoint.export_hf_interval=1",
)


@pytest.mark.parametrize("key", FOLDERS)
def test_a_folder_that_cannot_be_written_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """It is a file, or without the right to write; told by its key before the first step."""
    folder = tmp_path / FOLDERS[key]

    def refuse(*, dir: Path) -> Any:
        if dir == folder:
            raise PermissionError(13, "Permission denied")
        return io.BytesIO()

    monkeypatch.setattr("titan_pt.run.files.tempfile.TemporaryFile", refuse)
    config = write_toml(tmp_path)
    assert train_here(config, *WRITES_ALL) == 2
    assert "cannot be written to: Permission denied" in (error := capsys.readouterr().err)
    assert f"config error: {key}" in error and "Traceback" not in error and error.count("config error") == 1
    shutil.rmtree(tmp_path / "run")
    folder.parent.mkdir(exist_ok=True)
    folder.touch()
    assert train_here(config, *WRITES_ALL) == 2
    error = capsys.readouterr().err
    assert f"config error: {key}" in error and "Traceback" not in error


def test_the_folder_of_completions_is_checked_too() -> None:
    assert ("rollout.record_freq", "rollouts") in GrpoConfig().written_folders()
    assert "rollouts" not in dict(GrpoConfig(rollout=Rollout(record_freq=0)).written_folders()).values()


def test_a_lock_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(ConfigError, match=r"^job\.dump_folder: .*/\.lock: cannot be written to: .*; remove it"):
        lock_run_folder(tmp_path)


@pytest.mark.parametrize(("place", "folder"), [("metrics.jsonl", True), (".lock", True), ("tb", False)])
def test_a_file_that_is_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str, folder: bool) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / place).mkdir() if folder else (tmp_path / "run" / place).touch()
    assert train_here(write_toml(tmp_path), "--metrics.enable_tensorboard") == 2
    error = capsys.readouterr().err
    assert f"{place} is a {'folder' if folder else 'file'}; move it away" in error and "Traceback" not in error


def test_a_disk_that_fills_up(tmp_path: Path) -> None:
    """Files end at 200 KB: the small ones fit, the tensors do not."""
    config = write_toml(tmp_path, checkpoint={"interval": 2}, training={"steps": 5})
    (tmp_path / "small_disk.py").write_text(
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))"
    )
    done = train(config, "--experimental.custom_import", "small_disk", cwd=tmp_path)
    assert done.code == 70 and done.last_line.startswith("gave up: checkpoint.max_failed_saves = 3 saves in")
    assert "File too large" in done.last_line and done.stdout == ""
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
    assert ["step 2" in errors[0], "step 4" in errors[1], len(errors)] == [True, True, 2]
    assert len(read_rows(tmp_path / "run")) == 5, "training went on to its end"
    assert not list((tmp_path / "run" / "checkpoint").iterdir())


# Shows that it converts, then gives documents until it is told to stop.
ENDLESS = """
from pathlib import Path
from titan_pt.data.sources import local as files

def endless(path, column):
    Path("converting").touch()
    while True:
        yield "line 1", {"text": "text"}

files._READERS[".jsonl"] = endless
"""

# Deaf: a library that does not look at signals.
DEAF = """
import time
from pathlib import Path

Path("converting").touch()
while True:
    time.sleep(0.1)
"""


@pytest.mark.parametrize(
    ("module", "numbers", "ranks"),
    [
        pytest.param(ENDLESS, ["SIGTERM"], 0, id="once"),
        pytest.param(DEAF, ["SIGINT", "SIGINT"], 0, id="twice"),
        pytest.param(ENDLESS, ["SIGTERM"], 2, id="two ranks", marks=pytest.mark.slow),
    ],
)
def test_a_signal_while_files_are_converted(tmp_path: Path, module: str, numbers: list[str], ranks: int) -> None:
    (tmp_path / "slow_start.py").write_text(module)
    (tmp_path / "few.jsonl").write_text(SPENT)
    data = {"sources": [{"name": "few", "path": "few.jsonl"}], "cache_dir": "cache"}
    config = write_toml(tmp_path, data=data, experimental={"custom_import": "slow_start"})
    process = forked.Popen(command(config, ranks=ranks), cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "converting").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    for number in numbers:
        process.send_signal(getattr(signal, number))
        time.sleep(0.2)
    error = process.communicate(timeout=30)[1]
    assert process.returncode == 143, error
    assert "Traceback" not in error and "before there was a" in error


def test_a_signal_while_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "signalling.py").write_text(
        f"import os; os.kill(os.getpid(), {int(signal.SIGTERM)}); os.kill(os.getpid(), {int(signal.SIGINT)})"
    )
    config = write_toml(tmp_path, experimental={"custom_import": "signalling"})
    assert train_here(config) == 143
    error = capsys.readouterr().err
    assert "Traceback" not in error and error.strip().endswith("Stopped by a signal before there was a checkpoint")
