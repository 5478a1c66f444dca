"""Finds a rank that hangs: it made no progress for the limit of its phase, by this process's own monotonic clock.

The launcher has a `Watchdog` for its workers. A run without it starts this module as a process (`watched.py`), which
therefore imports nothing but the standard library.
"""

import contextlib
import ctypes
import glob
import os
import re
import select
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from titan_pt.run.heartbeat import PAGE

PAGE_BYTES = 4096
"""Of a page in its file; the stacks of all threads follow, where a watcher sends STACKS_SIGNAL."""
STACKS_SIGNAL = signal.SIGUSR2

_POLL_SECONDS = 0.5
_ASLEEP_SECONDS = 10.0  # a watcher that did not run for so long saw nothing, and begins anew
_DUMP_SECONDS = 3.0
_LEAVE_SECONDS = 5.0
_STOPPED = PAGE_BYTES - 1  # place of a watcher's own mark in a page
# How faulthandler's text ends: the outermost frame of the main thread, or more frames than it writes.
_WHOLE = re.compile(r" in (<module>|_run_module_as_main)\n$|\n  \.\.\.\n$")


@dataclass
class Watched:
    """A rank as its page shows it."""

    path: str
    pid: int
    beats: int
    since: float
    """When its counter last moved, by the watcher's clock."""
    rank: int
    waits: bool
    """Whether it waits for another rank, however long that takes."""
    stopped: bool
    """Whether a signal stopped the process."""
    limit: float
    patience: float
    """Limit of a wait for a rank that cannot be seen."""
    phase: str
    key: str
    """Key of the TOML that sets the limit."""

    def is_late(self, now: float) -> bool:
        """Whether it made no progress for too long."""
        return now - self.since > (max(self.limit, self.patience) if self.waits else self.limit)


class Pages:
    """The pages of the ranks on this machine, read again and again.

    Args:
        paths: gives the files that there are now.
    """

    def __init__(self, paths: Callable[[], Sequence[str]], clock: Callable[[], float] = time.monotonic) -> None:
        self._paths, self._clock = paths, clock
        self._seen: dict[str, Watched] = {}
        self._last = clock()
        self.ranks: list[Watched] = []
        """Those that lived at the last look."""

    def hanging(self) -> list[Watched]:
        """The ranks that are beyond their limit, if the job hangs; else none.

        It hangs when a rank is beyond its limit and none is left that it may be waiting for: all others are beyond
        theirs, or wait too. A process that is stopped waits for nobody.
        """
        now = self._clock()
        asleep, self._last = now - self._last > _ASLEEP_SECONDS, now
        self.ranks = [rank for path in self._paths() if (rank := self._read(path, now, asleep))]
        late = [rank for rank in self.ranks if rank.is_late(now)]
        if any(rank.stopped for rank in late) or all(rank in late or rank.waits for rank in self.ranks):
            return [rank for rank in late if not rank.waits] or (late if len(late) == len(self.ranks) else [])
        return []

    def _read(self, path: str, now: float, asleep: bool) -> Watched | None:
        try:
            content = Path(path).read_bytes()
        except OSError:
            return None
        if len(content) < PAGE_BYTES:
            return None
        beats, waits, pid, rank, limit, patience, phase, key = PAGE.unpack_from(content)
        state = state_of(pid)
        if not pid or state in "ZX":
            return None
        before = self._seen.get(path)
        goes_on = before is None or (before.pid, before.beats) != (pid, beats) or asleep
        since = now if before is None or goes_on else before.since
        names = (text.rstrip(b"\0").decode(errors="replace") for text in (phase, key))
        stopped = state in "Tt" or content[_STOPPED] == 1
        self._seen[path] = Watched(path, pid, beats, since, rank, bool(waits), stopped, limit, patience, *names)
        return self._seen[path]


@dataclass
class Verdict:
    """Why a job ends."""

    reason: str
    """Which rank hangs, where and why, in one line."""
    guilty: Sequence[Watched]


def judge(hanging: Sequence[Watched], now: float, folder: Path | None, own: int | None = None) -> Verdict:
    """Have the ranks write their stacks, keep these in the folder, and find the rank that the others wait for.

    Of ranks that are late together that is one that was stopped, else one that is in no collective, else any.

    Args:
        own: the process that this watcher may signal; None: all.
    """
    stacks = dump_stacks(hanging, own)
    kept = _keep(stacks, folder)
    waiting = [rank for rank in hanging if rank.waits or in_collective(stacks[rank.rank])]
    stopped = [rank for rank in hanging if rank.stopped]
    guilty = stopped or [rank for rank in hanging if rank not in waiting] or list(hanging)
    first = min(guilty, key=lambda rank: rank.since)
    if stopped:
        why = "the process was stopped (SIGSTOP, or a debugger)"
    elif first in waiting:
        why = "it waits for a rank that is not seen from here, on another machine for example"
    else:
        why = f"it is in {innermost(stacks[first.rank])}"
    numbers = ", ".join(str(rank.rank) for rank in guilty)
    names = f"ranks {numbers} hang" if len(guilty) > 1 else f"rank {numbers} hangs"
    limit = f"{first.key} = {first.limit:g}"
    if first.waits:
        limit = f"comm.save_timeout_seconds = {first.patience:g}"
    where = f"; stacks of all threads: {kept}" if kept else ""
    return Verdict(
        f"{names} in {first.phase}: no progress for {now - first.since:.0f} s, {limit}; {why}{where}", guilty
    )


def dump_stacks(ranks: Sequence[Watched], own: int | None = None) -> dict[int, str]:
    """The stacks of all threads of each rank, by rank; a stopped process goes on for that. Empty where none comes,
    and cut where a process does not write all of it in time."""
    for rank in ranks:
        if own in (None, rank.pid):
            _mark_stopped(rank)
            _ask_main_thread(rank.pid)  # before it goes on, so that the stacks are those of where it was
            _send(rank.pid, signal.SIGCONT)
    deadline = time.monotonic() + _DUMP_SECONDS
    while True:
        time.sleep(0.1)
        stacks = {rank.rank: _written(rank.path) for rank in ranks}
        if all(_WHOLE.search(text) for text in stacks.values()) or time.monotonic() > deadline:
            return stacks


def in_collective(stacks: str) -> bool:
    """Whether the main thread waits in a collective: a rank that does so is not at fault."""
    return any("/torch/distributed/" in frame for frame in _main_frames(stacks)[:3])


def innermost(stacks: str) -> str:
    """Where the main thread is."""
    frames = _main_frames(stacks)
    return frames[0] if frames else "a call that does not return to Python, without an answer to signals"


def _main_frames(stacks: str) -> list[str]:
    """The frames of the main thread, the innermost first: faulthandler writes the oldest thread last."""
    found = re.findall(r'^  File "(.*)", line (\d+) in (.*)$', stacks.rpartition("hread 0x")[2], re.MULTILINE)
    return [f"{file}:{line} in {function}" for file, line, function in found]


class Watchdog:
    """A thread of the launcher that watches its workers, and kills them when one hangs.

    Args:
        folder: where the workers' pages are.
        stacks: where the stacks of a rank that hangs go, if anywhere.
    """

    def __init__(self, folder: Path, stacks: Path | None) -> None:
        self.folder, self._stacks = folder, stacks
        self.reason = ""
        """Which rank hung, where and why; empty where none did. Who starts the workers again may forget it."""
        self._closed = threading.Event()

    @contextlib.contextmanager
    def watching(self) -> Iterator["Watchdog"]:
        """Context in which it watches."""
        thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._closed.set()
            thread.join()

    def _watch(self) -> None:
        pages = Pages(lambda: sorted(map(str, self.folder.glob("beats-*"))))
        while not self._closed.wait(_POLL_SECONDS):
            if hanging := pages.hanging():
                self._dump_flight_recorders()
                verdict = judge(hanging, time.monotonic(), self._stacks)
                self.reason = verdict.reason
                for rank in verdict.guilty:
                    _send(rank.pid, signal.SIGKILL)
                self._closed.wait(_LEAVE_SECONDS)  # the others lose it, and may write what they have
                for rank in pages.ranks:
                    _send(rank.pid, signal.SIGKILL)

    def _dump_flight_recorders(self) -> None:
        """NCCL's threads write the flight recorder where something is written to their pipes."""
        for pipe in self.folder.glob("nccl-*.pipe"):
            with contextlib.suppress(OSError):
                file = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
                os.write(file, b"1")
                os.close(file)


def main(ward: int, folder: str, pattern: str) -> None:
    """Watch one process among the ranks whose pages are named so, until it is gone or closes the standard input.

    Where the job hangs the reason goes to the standard output, for the process to end itself with code 1; one that
    cannot is killed.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):  # they mean the run
        signal.signal(number, signal.SIG_IGN)
    pages = Pages(lambda: sorted(glob.glob(pattern)))
    while not select.select([sys.stdin], [], [], _POLL_SECONDS)[0] and state_of(ward) not in "ZX":
        if hanging := pages.hanging():
            reason = judge(hanging, time.monotonic(), Path(folder), ward).reason
            try:  # past Python's buffer, which would fail once more at the end
                os.write(sys.stdout.fileno(), f"{reason}\n".encode())
            except BrokenPipeError:  # faulthandler may read the frames of a thread while they change, and crash
                print(f"failed: {reason}", file=sys.stderr, flush=True)
                return
            deadline = time.monotonic() + _LEAVE_SECONDS
            while state_of(ward) not in "ZX":
                if time.monotonic() > deadline:
                    print(f"failed: {reason}", file=sys.stderr, flush=True)
                    _send(ward, signal.SIGKILL)
                    return
                time.sleep(0.1)


def phase_of(folder: Path, rank: int) -> str:
    """The phase that a rank of this machine was last in; empty where it is not known."""
    try:
        return str(PAGE.unpack_from((folder / f"beats-{rank}").read_bytes())[6].rstrip(b"\0").decode(errors="replace"))
    except (OSError, struct.error):
        return ""


def state_of(pid: int) -> str:
    """The process's state as the kernel has it: "T" for stopped, "Z" for gone, "?" where it cannot be known."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except OSError:
        pass
    try:
        os.kill(pid, 0)
    except OSError:
        return "X"
    return "?"


def _mark_stopped(rank: Watched) -> None:
    """Let the other ranks' watchers know too what the next signal changes."""
    if rank.stopped:
        with contextlib.suppress(OSError), open(rank.path, "r+b") as file:
            file.seek(_STOPPED)
            file.write(b"\1")


def _written(path: str) -> str:
    try:
        return Path(path).read_bytes()[PAGE_BYTES:].decode(errors="replace")
    except OSError:
        return ""


def _keep(stacks: dict[int, str], folder: Path | None) -> Path | None:
    """Write the stacks to `stacks-rank-N.txt`; returns the folder, None where it cannot be."""
    if folder is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for rank, text in stacks.items():
            (folder / f"stacks-rank-{rank}.txt").write_text(text)
    except OSError:
        return None
    return folder


def _ask_main_thread(pid: int) -> None:
    """Send STACKS_SIGNAL to a process's first thread: of a stopped process any may take a signal of the whole, and the
    first one would run on while its frames are read."""
    tgkill = getattr(ctypes.CDLL(None), "tgkill", None)
    if tgkill is None or tgkill(pid, pid, STACKS_SIGNAL):
        _send(pid, STACKS_SIGNAL)


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(OSError):
        os.kill(pid, number)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
