"""The pool that calls environments: processes without torch, each call within a time and a memory limit.

A process that takes too long, dies or eats its memory is killed and replaced. While a call is late, another process
takes its place in the queue, so that only its own episode waits for it.
"""

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing import Pipe
from typing import Any, Literal

from titan_pt.config.errors import ConfigError
from titan_pt.environments.protocol import Environment, EpisodeState, ModelTurn, Reply

LATE_SECONDS = 1.0
"""A call that takes longer is late: others do not wait for it."""
_START_SECONDS = 120.0
_MOST_LATE = 4  # processes that may be late, for each of the pool


@dataclass(frozen=True)
class PoolLimits:
    """Limits of a pool and of its calls; the fields are those of [rollout] that begin with environment_."""

    workers: int = 2
    timeout_seconds: float = 10.0
    memory_gib: float = 1.0


@dataclass(frozen=True)
class Failure:
    """A call that gave no reply."""

    kind: Literal["error", "timeout"]
    message: str


@dataclass
class Call:
    """One `step` of an environment."""

    environment: int
    """Number of the environment in the pool."""
    state: EpisodeState
    turn: ModelTurn
    done: "queue.SimpleQueue[Call]"
    """Where the call is put when it has its result."""
    key: Any = None
    """What the caller knows it by."""
    started: float | None = None
    """When a process took it, by time.monotonic()."""
    result: Reply | Failure | None = None
    dropped: threading.Event = field(default_factory=threading.Event)
    """Set where nobody waits for it any more."""

    @property
    def is_late(self) -> bool:
        """Whether it takes long."""
        return self.started is not None and time.monotonic() - self.started > LATE_SECONDS


class EnvironmentPool:
    """Processes that run the `step` of environments, started when the first call comes.

    Raises:
        ConfigError: an environment cannot be pickled.
    """

    def __init__(self, environments: Sequence[tuple[str, Environment]], limits: PoolLimits) -> None:
        self._limits = limits
        self._calls: queue.SimpleQueue[Call] = queue.SimpleQueue()
        self._processes: set[_Process] = set()
        self._lock = threading.Lock()
        self._threads = self._late = 0
        for name, environment in environments:
            try:
                pickle.dumps(environment)
            except Exception as error:
                raise ConfigError(
                    f"grpo.tasks ({name!r}): its environment cannot be sent to the processes that run it "
                    f"({type(error).__name__}: {error}); define its class at the top of a module, and open what "
                    "cannot be pickled in step"
                ) from error
        self._pickled = pickle.dumps([environment for _, environment in environments])
        self._close = weakref.finalize(self, _end, self._processes)

    def check(self) -> None:
        """Start a process.

        Raises:
            ConfigError: the environments cannot be had there.
        """
        process = _Process(self._pickled, self._limits)
        problem = process.problem
        process.kill()
        if problem:
            raise ConfigError(f"grpo.tasks: the environments cannot be started in a process of their own: {problem}")

    def submit(self, call: Call) -> None:
        """Have a call made."""
        self._calls.put(call)
        with self._lock:
            self._add_thread()

    def close(self) -> None:
        """Kill all processes; what they have under way is thrown away."""
        self._close()

    def _add_thread(self) -> None:
        """One more thread, unless there are enough; the lock is held."""
        if self._threads - self._late < self._limits.workers and self._threads < _MOST_LATE * self._limits.workers:
            self._threads += 1
            threading.Thread(target=self._serve, name="environments", daemon=True).start()

    def _serve(self) -> None:
        """Make calls, one after the other, in a process that is this thread's own."""
        process: _Process | None = None
        while self._close.alive:
            with self._lock:
                if self._threads - self._late > self._limits.workers:  # one took the place of a late one
                    self._threads -= 1
                    break
            try:
                call = self._calls.get(timeout=0.2)
            except queue.Empty:
                continue
            if call.dropped.is_set():
                continue
            if process is None:
                process = _Process(self._pickled, self._limits)
                self._processes.add(process)
            call.started = time.monotonic()
            call.result = self._result(process, call)
            if process.is_dead:
                self._processes.discard(process)
                process = None
            call.done.put(call)
        if process is not None:
            self._processes.discard(process)
            process.kill()

    def _result(self, process: "_Process", call: Call) -> Reply | Failure:
        first = min(LATE_SECONDS, self._limits.timeout_seconds)
        answer = process.ask((call.environment, call.state, call.turn), first)
        if answer is None and (left := self._limits.timeout_seconds - LATE_SECONDS) > 0:
            with self._lock:
                self._late += 1
                self._add_thread()
            answer = process.ask(None, left)
            with self._lock:
                self._late -= 1
        if answer is None:
            process.kill()
            return Failure("timeout", f"step took longer than {self._limits.timeout_seconds:g} s")
        return answer


class _Process:
    """One process of the pool."""

    def __init__(self, environments: bytes, limits: PoolLimits) -> None:
        self._pipe, theirs = Pipe()
        self.is_dead = False
        self._limits = limits
        number = theirs.fileno()
        command = [sys.executable, "-m", "titan_pt.environments.worker", str(number), str(_bytes(limits))]
        path = os.pathsep.join(place or os.getcwd() for place in sys.path)
        # A session of its own: the signals of a terminal or a launcher are the run's, which then ends this process.
        # What an environment prints goes to stderr: the run's stdout may be JSON.
        self._process = subprocess.Popen(
            command, pass_fds=[number], env={**os.environ, "PYTHONPATH": path}, stdin=subprocess.DEVNULL,
            stdout=2, start_new_session=True,
        )  # fmt: skip
        theirs.close()
        self.problem = self._start(environments)

    def _start(self, environments: bytes) -> str:
        try:
            self._pipe.send_bytes(environments)
            if not self._pipe.poll(_START_SECONDS):
                return f"not ready after {_START_SECONDS:g} s"
            return self._pipe.recv() or ""
        except (EOFError, OSError):
            return self._death()

    def ask(self, call: Any, seconds: float) -> Reply | Failure | None:
        """The answer to a call, or with None to the one before; None where it does not come in time."""
        if self.problem:
            self.kill()
            return Failure("error", f"its process did not start: {self.problem}")
        try:
            if call is not None:
                self._pipe.send(call)
            if not self._pipe.poll(seconds):  # one that died may have left the pipe to a process that it forked
                return None if self._process.poll() is None else Failure("error", self._death())
            answer = self._pipe.recv()
        except (EOFError, OSError):
            return Failure("error", self._death())
        except Exception as error:  # the call, or what came back, cannot be pickled
            self.kill()
            return Failure("error", f"{type(error).__name__}: {error}")
        if isinstance(answer, Reply):
            return answer
        text, is_full = answer
        if is_full:
            self.kill()
        return Failure("error", text)

    def kill(self) -> None:
        """End the process and those that it started, and close the pipe: for the thread that asks it."""
        self.is_dead = True
        self.end()
        self._pipe.close()

    def end(self) -> None:
        """End the process and those that it started: for any thread. The one that asks it sees that, and closes."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _death(self) -> str:
        self.kill()
        code = self._process.returncode
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"its process {how}; rollout.environment_memory_gib = {self._limits.memory_gib:g} is what it may add"


def _bytes(limits: PoolLimits) -> int:
    return int(limits.memory_gib * 2**30)


def _end(processes: set[_Process]) -> None:
    for process in list(processes):
        process.end()
