"""The judge of ranks that hang: pages of memory, and the watcher's own clock."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from titan_pt.config.schema.job_config import Comm
from titan_pt.run import heartbeat
from titan_pt.run.heartbeat import PAGE
from titan_pt.run.watchdog import (
    PAGE_BYTES,
    STACKS_SIGNAL,
    Pages,
    dump_stacks,
    in_collective,
    innermost,
    judge,
    state_of,
)

COMM = Comm(train_timeout_seconds=100, save_timeout_seconds=1000)


class Job:
    """Two ranks on one machine, and a watcher that looks every five seconds."""

    def __init__(self, folder: Path) -> None:
        self.now, self.folder = 0.0, folder
        self.beats = [0, 0]
        self.waits = [False, False]
        self.pid = os.getpid()
        self.pages = Pages(lambda: sorted(map(str, folder.glob("beats-*"))), lambda: self.now)

    def go(self, seconds: float, *alive: int, step: float = 5.0) -> list[int]:
        """Let the time pass in which some ranks get on; returns the ranks that hang."""
        end = self.now + seconds
        while self.now < end:
            self.now += step
            for rank in (0, 1):
                self.beats[rank] += rank in alive
                self.write(rank)
            if hanging := self.pages.hanging():
                return [rank.rank for rank in hanging]
        return []

    def write(self, rank: int, stacks: str = "", stopped: bool = False) -> None:
        numbers = self.beats[rank], self.waits[rank], self.pid, rank, 100.0, 1000.0
        page = PAGE.pack(*numbers, b"step 7", b"comm.train_timeout_seconds").ljust(PAGE_BYTES - 1, b"\0")
        (self.folder / f"beats-{rank}").write_bytes(page + bytes([stopped]) + stacks.encode())


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def test_a_long_step_that_gets_on_is_not_ended(job: Job) -> None:
    for _ in range(10):  # micro-batches of 55 s
        assert job.go(50) == [] and job.go(5, 0, 1) == []


def test_a_rank_that_the_other_waits_for(job: Job) -> None:
    assert job.go(5, 0, 1) == []
    job.waits[0] = True
    assert job.go(100) == []
    assert job.go(10) == [1] and job.now == 110


def test_a_rank_waits_as_long_as_the_other_gets_on(job: Job) -> None:
    job.waits[0] = True
    assert job.go(5000, 1, step=10.0) == []


def test_a_rank_in_a_collective_is_not_late_before_all_are(job: Job) -> None:
    assert job.go(300, 0) == []
    assert job.go(110) == [0, 1]


def test_ranks_that_all_wait_for_another_machine(job: Job) -> None:
    job.waits = [True, True]
    assert job.go(990) == []
    assert job.go(20) == [0, 1]


def test_a_watcher_that_did_not_run_begins_anew(job: Job) -> None:
    assert job.go(50, 0, 1) == []
    assert job.go(3600, step=3600) == [] and job.go(90) == []
    assert job.go(20) == [0, 1]


def test_a_process_that_is_gone_is_not_watched(job: Job) -> None:
    job.pid = 2**22 + 1
    assert job.go(500) == []


COLLECTIVE = """Thread 0x01 (most recent call first):
  File "/x/reader.py", line 3 in read

Current thread 0x02 (most recent call first):
  File "/site/torch/distributed/distributed_c10d.py", line 2970 in all_reduce
  File "/site/torch/distributed/c10d_logger.py", line 83 in wrapper
  File "/x/trainer.py", line 9 in step
"""
STUCK = """Current thread 0x02 (most recent call first):
  File "/x/my reward.py", line 12 in reward
  File "/x/trainer.py", line 9 in step
"""


def test_the_one_that_is_in_no_collective_is_named(job: Job, tmp_path: Path) -> None:
    assert in_collective(COLLECTIVE) and not in_collective(STUCK)
    assert innermost(STUCK) == "/x/my reward.py:12 in reward"
    assert job.go(110)
    job.write(0, COLLECTIVE)
    job.write(1, STUCK)
    verdict = judge(job.pages.hanging(), job.now, tmp_path / "stacks", own=-1)
    assert [rank.rank for rank in verdict.guilty] == [1]
    assert verdict.reason == (
        "rank 1 hangs in step 7: no progress for 105 s, comm.train_timeout_seconds = 100; "
        f"it is in /x/my reward.py:12 in reward; stacks of all threads: {tmp_path / 'stacks'}"
    )
    assert (tmp_path / "stacks" / "stacks-rank-1.txt").read_text() == STUCK


def test_a_stopped_process_counts_before_stacks(job: Job) -> None:
    assert job.go(110)
    job.write(0, STUCK)
    job.write(1, COLLECTIVE, stopped=True)
    verdict = judge(job.pages.hanging(), job.now, None, own=-1)
    assert verdict.reason.startswith("rank 1 hangs in step 7: ") and "the process was stopped" in verdict.reason


def test_what_a_process_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "_comm", None)
    page = memoryview(bytearray(PAGE.size))
    heartbeat.write_to(page)

    def shown() -> tuple[int, bool, float, bytes]:
        beats, waits, _, _, limit, _, what, _ = PAGE.unpack_from(page)
        return beats, bool(waits), limit, what.rstrip(b"\0")

    before = shown()[0]
    heartbeat.enter("step 3", "train", COMM)
    with heartbeat.phase("a compilation", "compile"):
        assert shown() == (before + 2, False, 1800.0, b"a compilation")
    with heartbeat.waiting():
        assert shown() == (before + 3, True, 100.0, b"step 3")
    assert shown() == (before + 4, False, 100.0, b"step 3")


def test_stacks_are_read_when_they_are_whole(job: Job) -> None:
    part = 'Thread 0x1 (most recent call first):\n  File "a.py", line 1 in run\n\nCurrent thread 0x2 (most recent call'
    rest = ' first):\n  File "b.py", line 2 in _one_step\n  File "<frozen runpy>", line 198 in _run_module_as_main\n'
    job.write(0, part)
    assert job.go(110)

    def write_on() -> None:
        time.sleep(0.4)
        job.write(0, part + rest)

    writer = threading.Thread(target=write_on)
    job.write(0, part)
    writer.start()
    stacks = dump_stacks([rank for rank in job.pages.ranks if rank.rank == 0], own=-1)  # which gets no signal
    writer.join()
    assert stacks == {0: part + rest}


def test_the_reason_is_told_where_the_process_dies_of_being_asked_for_its_stacks(job: Job) -> None:
    ward = subprocess.Popen(["sleep", "60"])  # which ends by the signal
    page = PAGE.pack(1, False, ward.pid, 0, 0.5, 0.5, b"step 7", b"comm.train_timeout_seconds")
    (job.folder / "beats-0").write_bytes(page.ljust(PAGE_BYTES, b"\0"))
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "titan_pt.run.watchdog", str(ward.pid), str(job.folder), f"{job.folder}/beats-*"]
    watcher = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(reading)
    os.close(writing)
    assert watcher.stderr and watcher.stdin
    told = watcher.stderr.read()
    watcher.stdin.close()
    assert (ward.wait(), watcher.wait()) == (-STACKS_SIGNAL, 0)
    assert told.startswith("failed: rank 0 hangs in step 7: ") and told.count("\n") == 1


# Its other threads wait; the first one stops the process, and runs on where it goes on.
STOPS_ITSELF = """
import faulthandler, os, signal, sys, threading, time
file = open(sys.argv[1], "r+b", buffering=0)
file.seek(0, 2)
faulthandler.register(signal.SIGUSR2, file)
for _ in range(8):
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
def stop():
    os.kill(os.getpid(), signal.SIGSTOP)
def run_on():
    while True:
        pass
stop()
run_on()
"""


@pytest.mark.parametrize("_", range(5))
def test_stacks_of_a_stopped_process_are_those_of_where_it_was(job: Job, _: int) -> None:
    job.write(0)
    process = subprocess.Popen([sys.executable, "-c", STOPS_ITSELF, str(job.folder / "beats-0")])
    try:
        while state_of(process.pid) != "T":
            time.sleep(0.01)
        job.pid = process.pid
        job.write(0, stopped=True)
        job.go(5)
        stacks = dump_stacks([rank for rank in job.pages.ranks if rank.rank == 0])
    finally:
        process.kill()
        process.wait()
    assert " in stop\n" in stacks[0] and " in run_on\n" not in stacks[0]
