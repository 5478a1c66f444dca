"""The launcher: one exit code for all workers, and signals that leave the workers their time."""

import functools
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import forked
import pytest
from helpers import ROOT, losses, run, write_toml
from torch.distributed.elastic.rendezvous import RendezvousError

from titan_pt import launch
from titan_pt.config.errors import ConfigError
from titan_pt.launch import count_restarts, count_workers, tell_who_hosts
from titan_pt.run.exit_codes import EXIT_CODES_VARIABLE, START_VARIABLE, record_exit_code
from titan_pt.run.told_codes import pick, read_exit_codes

# Saves for a second after the first signal, whatever comes after it.
WORKER = """
import os, signal, sys, time
from pathlib import Path
from titan_pt.run.exit_codes import record_exit_code

signals = []
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, frame: signals.append(number))
Path(f"up-{os.environ['RANK']}").touch()
while not signals:
    time.sleep(0.02)
Path(f"saving-{os.environ['RANK']}").touch()
time.sleep(1.5)
Path(f"saved-{os.environ['RANK']}").touch()
record_exit_code(75)
sys.exit(75)
"""


@pytest.mark.parametrize(
    ("codes", "code"),
    [
        ([0, 0], 0),
        ([1], 1),
        ([1, -15], 1),
        ([-9], 1),
        ([-9, -15], 1),
        ([], 1),
        ([75, -15], 75),
        ([75, 75, 0], 75),
        ([75, -9], 75),
        ([143, 143], 143),
        ([143, 75], 75),
        ([70, -15], 70),
        ([2, 1], 2),
        ([2, -15], 2),
        ([-15, -15], 143),
        ([-2], 143),
    ],
)
def test_pick(codes: list[int], code: int) -> None:
    assert pick(codes) == code


def test_workers_tell_their_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record_exit_code(1)  # without a launcher: nothing to tell
    assert list(read_exit_codes(tmp_path)) == []
    monkeypatch.setenv(EXIT_CODES_VARIABLE, str(tmp_path))
    for rank, code in (("0", 75), ("1", 0), ("10", 75)):
        monkeypatch.setenv("RANK", rank)
        record_exit_code(code)
    (tmp_path / "rank-2").touch()  # killed while it wrote
    assert sorted(read_exit_codes(tmp_path)) == [0, 75, 75]
    monkeypatch.setenv(EXIT_CODES_VARIABLE, str(tmp_path / "gone"))
    record_exit_code(1)


@pytest.mark.parametrize("number", ["abc", "0", "-1", "1.5", ""])
def test_a_number_of_workers_that_is_none(number: str) -> None:
    with pytest.raises(ConfigError, match="NGPU or --nproc_per_node"):
        count_workers(number)


@pytest.mark.parametrize("number", ["abc", "-1", "1.5", "9" * 99])
def test_a_number_of_restarts_that_is_none(number: str) -> None:
    assert (count_restarts(""), count_restarts("12")) == (0, 12)
    with pytest.raises(ConfigError, match=r"MAX_RESTARTS = .*: must be a number of restarts, 0 or more"):
        count_restarts(number)


# Each start leaves the code that its number in `codes` says.
STARTS = """
import os, signal, sys, time
from pathlib import Path
from titan_pt.run.exit_codes import SIGNALLED, record_exit_code

starts = Path("starts")
number = int(starts.read_text() or 0) if starts.exists() else 0
starts.write_text(str(number + 1))
code, told = sys.argv[1:][number].split(":")
if told == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
record_exit_code(int(code), {"signal": SIGNALLED, "": ""}.get(told, told))
sys.exit(int(code))
"""


@pytest.mark.parametrize(
    ("starts", "restarts", "code", "used"),
    [
        (["1:", "75:", "0:"], "5", 0, 3),
        (["1:kill", "1:failed: again"], "1", 1, 2),
        (["75:signal", "0:"], "5", 75, 1),
        (["75:", "0:"], "", 75, 1),
        (["1:", "70:gave up"], "5", 70, 2),
        (["1:", "2:config error"], "5", 2, 2),
    ],
    ids=["until it is done", "the last code", "a signal is obeyed", "none by default", "gave up", "a mistake"],
)
def test_restarts_of_the_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, starts: list[str], restarts: str, code: int, used: int
) -> None:
    (tmp_path / "worker.py").write_text(STARTS)
    monkeypatch.setenv("MAX_RESTARTS", restarts)
    done = run(
        [sys.executable, "-m", "titan_pt.launch", "--standalone", "--nproc_per_node", "1", "worker.py", *starts],
        cwd=tmp_path,
    )
    assert (done.code, (tmp_path / "starts").read_text()) == (code, str(used)), done.stderr
    assert done.stderr.count(": restart ") == used - 1


def test_a_signal_between_two_starts_ends_the_run(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(STARTS)
    arguments = [
        sys.executable,
        "-m",
        "titan_pt.launch",
        "--standalone",
        "--nproc_per_node=1",
        "worker.py",
        *["1:"] * 9,
    ]
    launcher = forked.Popen(
        arguments, cwd=tmp_path, env={**os.environ, "MAX_RESTARTS": "9"}, stderr=subprocess.PIPE, text=True
    )
    assert launcher.stderr
    while "restart 2 of 9" not in launcher.stderr.readline():
        assert launcher.poll() is None
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(30) == 143 and (tmp_path / "starts").read_text() == "2"


@pytest.mark.parametrize("agent", [False, True])
def test_a_signal_just_before_the_next_start_ends_the_run(monkeypatch: pytest.MonkeyPatch, agent: bool) -> None:
    """After the pause's last look, before the handlers of the start: it starts nothing."""
    starts = 0

    class Watchdog(launch.Watchdog):
        def __init__(self, folder: Path, stacks: Path | None) -> None:
            if starts:
                signal.raise_signal(signal.SIGTERM)
            super().__init__(folder, stacks)

    def start(*_: Any, **options: Any) -> Any:
        nonlocal starts
        assert "WORLD_SIZE" not in options.get("env", {}), "of another launcher"
        starts += 1
        if agent:
            raise RendezvousError
        return SimpleNamespace(wait=lambda: 1)

    monkeypatch.setenv("WORLD_SIZE", "4")
    for name in (EXIT_CODES_VARIABLE, START_VARIABLE):
        monkeypatch.setenv(name, "")  # set back at the end
    monkeypatch.setattr(launch, "Watchdog", Watchdog)
    monkeypatch.setattr(subprocess, "Popen", start)
    args = SimpleNamespace(nnodes="1", rdzv_endpoint="here")
    once = functools.partial(launch._run, start, args, [signal.SIGTERM])
    alone = functools.partial(launch._run_alone, [], 1.0, [signal.SIGTERM])
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert launch._run_again(once if agent else alone, 5, None, lambda: 75) == 75 and starts == 1
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_lone_worker_gets_nothing_that_another_job_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: dict[str, str] = {}

    def start(*_: Any, env: dict[str, str], **__: Any) -> Any:
        given.update(env)
        return SimpleNamespace(wait=lambda: 0)

    monkeypatch.setattr(subprocess, "Popen", start)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "4")
    assert launch._run_alone([], 1.0, [], launch.Watchdog(tmp_path, None), []) == (0, [], False)
    assert "PATH" in given and not [name for name in given if "RANK" in name or "WORLD" in name or "MASTER" in name]


def test_the_script_works_from_any_folder(tmp_path: Path) -> None:
    write_toml(tmp_path, training={"steps": 2})
    environment = {"CONFIG_FILE": "not_this.toml", "NGPU": "2", "LOG_RANK": "1", "PYTHON": sys.executable}
    flags = ["run.toml", "--job.dump_folder", "here", "--optimizer.lr=1e-3"]
    done = run([str(ROOT / "run_train.sh"), *flags], cwd=tmp_path, env=environment)
    assert done.code == 0, done.stderr
    assert losses(tmp_path / "here").keys() == {1, 2}, "a flag's path is the caller's"
    assert "[rank1]" in done.stderr and "[rank0]" not in done.stderr


@pytest.mark.parametrize(
    ("flags", "environment", "words"),
    [
        (["--training.stpes", "5"], {"NGPU": "2"}, "training.steps"),
        ([], {"NGPU": "0"}, "NGPU or --nproc_per_node = '0'"),
        ([], {"CONFIG_FILE": "nowhere.toml"}, "nowhere.toml"),
    ],
)
def test_the_script_reports_a_mistake_once(
    tmp_path: Path, flags: list[str], environment: dict[str, str], words: str
) -> None:
    done = run([str(ROOT / "run_train.sh"), *flags], cwd=tmp_path, env={**environment, "PYTHON": sys.executable})
    assert done.code == 2 and words in done.stderr, done.stderr
    assert done.stderr.count("config error: ") == 1 and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_script_says_what_to_install(tmp_path: Path) -> None:
    bare = {"PYTHON": str(tmp_path / "python")}
    Path(bare["PYTHON"]).write_text(f'#!/bin/sh\nPYTHONPATH="" exec {sys.executable} -S -E "$@"\n')
    Path(bare["PYTHON"]).chmod(0o755)
    done = run([str(ROOT / "run_train.sh")], cwd=tmp_path, env=bare)
    assert done.code == 2 and done.stderr.count("\n") == 1
    assert "-m pip install -e ." in done.stderr


def test_help_is_printed_once() -> None:
    launch = [sys.executable, "-m", "titan_pt.launch", "--standalone", "--nproc_per_node", "2", "-m", "titan_pt.train"]
    done = run([*launch, "--help"])
    assert done.code == 0 and done.stdout.count("--training.steps ") == 1


def wait_for(*paths: Path) -> None:
    deadline = time.monotonic() + 120
    while not all(path.exists() for path in paths):
        assert time.monotonic() < deadline, paths
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("numbers", "nohup"),
    [
        ([signal.SIGTERM], False),
        ([signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGINT], False),
        ([signal.SIGHUP, signal.SIGTERM], True),
        ([signal.SIGUSR1, signal.SIGTERM], False),
    ],
    ids=["once", "four times", "nohup", "Slurm's"],
)
def test_signals_to_the_launcher_leave_the_workers_their_time(
    tmp_path: Path, numbers: list[signal.Signals], nohup: bool
) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    arguments = [sys.executable, "-m", "titan_pt.launch", "--standalone", "--nproc_per_node", "2", "worker.py"]
    with (tmp_path / "log").open("w") as log:
        launcher = forked.Popen(["nohup", *arguments] if nohup else arguments, cwd=tmp_path, stderr=log)
    wait_for(tmp_path / "up-0", tmp_path / "up-1")
    for number in numbers:
        launcher.send_signal(number)
        if number != signal.SIGHUP:
            wait_for(tmp_path / "saving-0", tmp_path / "saving-1")
    assert launcher.wait(60) == 75
    assert (tmp_path / "saved-0").exists() and (tmp_path / "saved-1").exists()
    assert "death signal" not in (tmp_path / "log").read_text(), "torchrun's own notice"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_before_there_are_workers(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "slow_module.py").write_text("import time, pathlib; pathlib.Path('up').touch(); time.sleep(60)")
    config = write_toml(tmp_path, experimental={"custom_import": "slow_module"})
    arguments = [sys.executable, "-m", "titan_pt.launch", "--standalone", "-m", "titan_pt.train"]
    process = forked.Popen([*arguments, "--job.config_file", str(config)], cwd=tmp_path, env=dict(os.environ))
    wait_for(tmp_path / "up")
    process.send_signal(number)
    assert process.wait(30) == 143


POD = {"PET_NODE_RANK": "1", "PET_RDZV_BACKEND": "c10d"}


@pytest.mark.parametrize(
    ("flags", "environment", "conf"),
    [
        (["--rdzv_backend", "c10d", "--node_rank", "0"], {}, "is_host=1"),
        (["--rdzv-backend=c10d", "--node-rank=1"], {}, "is_host=0"),
        (["--rdzv_conf", "join_timeout=9"], POD, "is_host=0,join_timeout=9"),
        (["--rdzv_conf", "is_host=1"], POD, "is_host=1"),
        (["--rdzv_backend", "c10d"], {}, ""),
        (["--node_rank", "1"], {}, ""),
    ],
)
def test_the_node_of_rank_0_holds_the_rendezvous(
    monkeypatch: pytest.MonkeyPatch, flags: list[str], environment: dict[str, str], conf: str
) -> None:
    from torch.distributed import run as torchrun

    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    arguments = [*flags, "-m", "titan_pt.train", "--node_ranking", "5"]
    args = torchrun.parse_args(arguments)
    tell_who_hosts(args, arguments)
    assert args.rdzv_conf == conf


def test_nodes_that_do_not_meet_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "worker.py").touch()
    flags = [
        "--nnodes=2",
        "--node_rank=0",
        "--rdzv_backend=c10d",
        "--rdzv_endpoint=127.0.0.1:29588",
        "--local_addr=127.0.0.1",
    ]
    launch = [sys.executable, "-m", "titan_pt.launch", *flags, "--rdzv_conf=join_timeout=1", "worker.py"]
    done = run(launch, cwd=tmp_path)
    assert done.code == 1 and "Traceback" not in done.stderr, done.stderr
    assert done.last_line.startswith("failed: 2 nodes did not meet at 127.0.0.1:29588 (Rendezvous")


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "worker.py").touch()
    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        used.listen()
        port = used.getsockname()[1]
        flags = ["--nproc_per_node=1", "--master_addr=127.0.0.1", f"--master_port={port}", "worker.py"]
        done = run([sys.executable, "-m", "titan_pt.launch", *flags], cwd=tmp_path)
    assert done.code == 1 and "Traceback" not in done.stderr, done.stderr
    assert done.last_line.startswith(
        f"failed: the rendezvous at 127.0.0.1:{port}: another process uses that port; take"
    )
