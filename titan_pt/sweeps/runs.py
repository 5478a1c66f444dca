"""The runs of a sweep: what is left to do of it, and the processes that do it.

A point's folder is a run folder with two files more: `point.toml`, what it is started with, and `output.txt`, what its
processes print. `sweep.json` keeps how it ended.
"""

import contextlib
import fcntl
import functools
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from titan_pt.components.checkpoint.step_folders import iter_steps
from titan_pt.config.errors import ConfigError
from titan_pt.config.resolve.toml_files import parse_toml
from titan_pt.run.exit_codes import ExitCode
from titan_pt.run.files import write_atomic, write_json
from titan_pt.run.own_json import read_own
from titan_pt.run.parents import die_with_parent
from titan_pt.run.run_folder import LOCK_FILE
from titan_pt.sweeps.grid import Point

logger = logging.getLogger("titan_pt")

TOML, OUTPUT, STATE = "point.toml", "output.txt", "sweep.json"
LAUNCH = ["-m", "titan_pt.launch", "--standalone", "-m", "titan_pt.train"]
_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
_LENGTH = ("training.steps", "training.tokens", "training.max_hours")
"""Keys that may change behind a finished run: it goes on to the new end."""
_BESIDE = ("job", "metrics", "profiling", "checkpoint", "comm")
"""Tables that change no result."""
_WORDS: dict[int | None, str] = {
    None: "new",
    ExitCode.DONE: "finished",
    ExitCode.FAILED: "failed",
    ExitCode.USAGE: "cannot run",
    ExitCode.GAVE_UP: "gave up",
    ExitCode.PREEMPTED: "stopped",
    ExitCode.TERMINATED: "stopped",
}


def last_code(point: Point) -> int | None:
    """The exit code that the point's last start ended with; None where there was none, or nobody saw its end."""
    code = read_own(point.folder / STATE).get("code")
    return code if isinstance(code, int) else None


def state_of(point: Point) -> str:
    """How far the point is, in a word or two."""
    code = last_code(point)
    word = _WORDS.get(code, f"exit code {code}")
    step = next((step for step, _ in iter_steps(point.folder / point.config.checkpoint.folder)), None)
    if code is None and (point.folder / TOML).exists():
        word = "started"
    return f"{word} at step {step}" if step is not None else word


def unfinished(points: Sequence[Point]) -> list[Point]:
    """The points that are to be started, or to be gone on with: not those that finished or gave up.

    Raises:
        ConfigError: a point was started with other values of what it does not vary.
    """
    found, problems = [], []
    for point in points:
        changed = _changed_keys(point)
        others = [key for key in changed if key not in _LENGTH]
        if others:
            problems.append(
                f"{point.folder}: was started with other values of {', '.join(others)}; "
                "name another folder by --output, or remove this one to train it anew"
            )
        elif changed or last_code(point) not in (ExitCode.DONE, ExitCode.GAVE_UP):
            found.append(point)
    if problems:
        raise ConfigError(*problems)
    return found


def _changed_keys(point: Point) -> list[str]:
    """Keys whose values differ from those that the point was last started with, of the keys that both have."""
    path = point.folder / TOML
    try:
        before = dict(_leaves(parse_toml(path.read_text(encoding="utf-8"))))
    except (OSError, ValueError):  # never started, or cut off by a crash
        return []
    now = dict(_leaves(parse_toml(point.config.to_toml())))
    same = {key for key in now if key in before or key in _LENGTH} - {
        key for key in now if key.split(".")[0] in _BESIDE
    }
    return sorted(key for key in same if before.get(key) != now[key])


def _leaves(table: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


class Runs:
    """Trains points in processes of their own, several at a time, until all are done or a signal comes.

    Args:
        jobs: runs at a time; the cores and the accelerators of this machine are shared among them.
        stopped: whether a signal came; the same command then goes on.
    """

    def __init__(self, points: Sequence[Point], jobs: int, stopped: Callable[[], bool]) -> None:
        self._left, self._stopped = list(points), stopped
        self._count, self._ended = len(points), 0
        self._jobs, self._free = jobs, list(range(jobs - 1, -1, -1))
        self._running: list[tuple[Point, int, float, subprocess.Popen[bytes]]] = []
        self._awaited: set[Path] = set()

    def run(self) -> None:
        """Run them all; where it is stopped, let those that run save, and start no more."""
        told = False
        while self._running or (self._left and not told):
            if self._stopped() and not told:
                told = True
                logger.warning(f"Stopped by a signal: {len(self._running)} runs save and end")
                for _, _, _, process in self._running:
                    process.send_signal(signal.SIGTERM)
            for point in list(self._left if self._free and not told else ()):
                if self._free and not self._in_use(point.folder):
                    self._left.remove(point)
                    self._start(point, self._free.pop())
            time.sleep(0.1)
            self._collect()

    def _in_use(self, folder: Path) -> bool:
        """Whether a run is still in the folder, such as one that saves after its sweep was killed."""
        try:
            with (folder / LOCK_FILE).open() as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if folder not in self._awaited:
                logger.warning(f"{folder.name}: another run is in its folder; this one starts when that one is gone")
            self._awaited.add(folder)
            return True
        except OSError:  # no run, or no locks
            return False
        return False

    def _start(self, point: Point, slot: int) -> None:
        point.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(point.folder / TOML, point.config.to_toml())
        (point.folder / STATE).unlink(missing_ok=True)
        output: IO[bytes]
        with (point.folder / OUTPUT).open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-u", *LAUNCH, "--job.config_file", str(point.folder / TOML)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **share_of(slot, self._jobs, os.environ)},
                start_new_session=True,  # Ctrl-C in a terminal comes to the sweep alone, which passes it on
                preexec_fn=functools.partial(die_with_parent, signal.SIGTERM),
            )
        self._running.append((point, slot, time.monotonic(), process))
        logger.info(f"{point.name}: starts; {point.folder / OUTPUT} has what it prints")

    def _collect(self) -> None:
        """Take note of the runs that ended."""
        for entry in [entry for entry in self._running if entry[3].poll() is not None]:
            point, slot, started, process = entry
            self._running.remove(entry)
            self._free.append(slot)
            code = process.returncode
            self._ended += 1
            write_json(point.folder / STATE, {"code": code})
            seconds = time.monotonic() - started
            said = f"[{self._ended}/{self._count}] {point.name}: {state_of(point)}, {seconds:.0f} s"
            if code in (ExitCode.DONE, ExitCode.PREEMPTED, ExitCode.TERMINATED):
                logger.info(said)
            else:
                logger.error(f"{said}: {_last_line(point.folder / OUTPUT)}")


@contextlib.contextmanager
def stops() -> Iterator[Callable[[], bool]]:
    """Context in which signals do no more than to answer whether one came."""
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in _STOPS}
    for number in _STOPS:
        if number != signal.SIGHUP or before[number] is not signal.SIG_IGN:  # nohup
            signal.signal(number, lambda number, _: came.append(number))
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def share_of(slot: int, jobs: int, environ: "os._Environ[str] | dict[str, str]") -> dict[str, str]:
    """Environment variables by which runs at a time share the cores and the accelerators of this machine."""
    if jobs == 1:
        return {}
    share = {} if "OMP_NUM_THREADS" in environ else {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
    devices = _cuda_devices(environ)
    if devices:
        size = len(devices) // jobs
        mine = devices[slot * size : (slot + 1) * size] if size else [devices[slot % len(devices)]]
        share["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
    return share


def _cuda_devices(environ: "os._Environ[str] | dict[str, str]") -> list[str]:
    named = environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [device.strip() for device in named.split(",") if device.strip()]
    return [str(i) for i in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]


def _last_line(path: Path) -> str:
    lines = path.read_bytes()[-4096:].decode(errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "it printed nothing")
