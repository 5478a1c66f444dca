"""A process that has imported torch, with the library preloaded, and forks a run for each line of JSON.

It has one thread when it forks: threads, of OpenMP and gloo too, begin in the run itself.
"""

import ctypes
import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from chaos.library import ON_TIME, Clock, Rule, arm, build

TESTS = Path(__file__).resolve().parent.parent
PR_SET_PDEATHSIG = 1
PRELOADED = [
    *("titan_pt.data.remote.ranges", "titan_pt.data.remote.retry", "titan_pt.data.remote.row_group_documents"),
    *("titan_pt.data.remote.sources", "titan_pt.data.remote.later_hashes", "titan_pt.data.remote.listing"),
    *("titan_pt.data.builtin.sources", "titan_pt.data.sources.named", "titan_pt.data.sources.local"),
    *("titan_pt.components.checkpoint.resume", "titan_pt.components.checkpoint.steps", "titan_pt.hf.export_running"),
    *("titan_pt.data.stream.same_sources", "titan_pt.data.stream.token_shards", "titan_pt.run.deadline"),
    *("titan_pt.trainers.grpo.spec", "titan_pt.trainers.grpo.step", "titan_pt.trainers.sft.spec"),
    *("titan_pt.generation.native", "titan_pt.evaluation.task_evaluator", "titan_pt.tasks.arithmetic"),
    *("titan_pt.data.sources.formatted_texts", "torch.utils.tensorboard", "torch.profiler._cupti_monitor"),
    *("torch.utils.serialization.config", "requests", "urllib3", "pyarrow.parquet", "huggingface_hub", "safetensors"),
    *("torch.distributed.elastic.multiprocessing.errors", "titan_pt.protocols.plugins", "titan_pt.run.idle_starts"),
]


@dataclass(frozen=True)
class Job:
    """One process of a run."""

    config: str
    run_folder: str
    log: str
    """Gets its output, appended."""
    counters: str
    """Gets what `library.read_counters` reads."""
    record: str
    """Gets a line for each global batch that was trained on, appended."""
    rules: tuple[Rule, ...] = ()
    clock: Clock = ON_TIME
    bad_weight: int = 0
    """The step behind which one weight is infinite, once."""
    stops: int = 0
    """The step behind which the process gets a SIGTERM, once."""
    variables: dict[str, str] = field(default_factory=dict)


class ForkServer:
    """Starts runs; one object a process."""

    def __init__(self) -> None:
        path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
        env = {**os.environ, "PYTHONPATH": path, "LD_PRELOAD": str(build()), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "chaos.server"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )
        self._states: dict[int, int | None] = {}
        self._unread = b""
        assert self._read(120) == {"ready": 1}

    def start(self, job: Job) -> int:
        """Start a run; returns its process id."""
        assert self._process.stdin
        print(json.dumps(asdict(job)), file=self._process.stdin, flush=True)
        while (message := self._read(60)).keys() != {"started"}:
            self._note(message)
        self._states[message["started"]] = None  # an earlier run may have had this number
        return message["started"]

    def wait(self, pid: int, seconds: float) -> int | None:
        """The exit code of a run, minus the signal that killed it; None where it has not ended by then."""
        end = time.monotonic() + seconds
        while self._states[pid] is None and (left := end - time.monotonic()) > 0:
            if message := self._read(left):
                self._note(message)
        return self._states[pid]

    def close(self) -> None:
        """End the server; runs that are left end with it."""
        self._process.kill()
        self._process.wait()

    def _note(self, message: dict[str, int]) -> None:
        self._states[message["pid"]] = message["code"]

    def _read(self, seconds: float) -> dict[str, int]:
        assert self._process.stdout
        pipe = self._process.stdout.fileno()  # itself: lines that a file object has read ahead are none of select's
        while b"\n" not in self._unread:
            if not select.select([pipe], [], [], seconds)[0]:
                return {}
            more = os.read(pipe, 1 << 16)
            assert more, "the fork server has ended"
            self._unread += more
        line, _, self._unread = self._unread.partition(b"\n")
        return json.loads(line)


def serve(requests: TextIO, answers: TextIO) -> None:
    """Import what runs import, then fork them until the requests end."""
    import forked

    del os.environ["LD_PRELOAD"]  # of this process and its forks alone
    for name in (*forked.PRELOADED, *PRELOADED):
        importlib.import_module(name)
    from titan_pt.components import flops

    flops.measure_matmul = lambda *_: 1e11  # type: ignore[attr-defined]  # half of a small run's time
    gc.collect()
    gc.freeze()
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(woken)
    tasks = [path.joinpath("comm").read_text().strip() for path in Path("/proc/self/task").iterdir()]
    others = [name for name in tasks if name != "jemalloc_bg_thd"]  # pyarrow's, which looks after itself in a fork
    assert len(others) == 1, f"threads do not survive a fork: {tasks}"
    _say(answers, ready=1)
    while True:
        ready, _, _ = select.select([requests, wake], [], [])
        if wake in ready:
            os.read(wake, 1000)
            for pid, status in _ended():
                _say(answers, pid=pid, code=os.waitstatus_to_exitcode(status))
        if requests in ready:
            line = requests.readline()
            if not line:
                return
            pid = os.fork()
            if not pid:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _train(json.loads(line))
            _say(answers, started=pid)


def _say(answers: TextIO, **message: int) -> None:
    print(json.dumps(message), file=answers, flush=True)


def _ended() -> Iterator[tuple[int, int]]:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        yield pid, status


def _train(content: dict[str, Any]) -> None:
    """`python -m titan_pt.train` in the forked process."""
    rules = tuple(Rule(**{**rule, "kinds": tuple(rule["kinds"])}) for rule in content["rules"])
    job = Job(**{**content, "rules": rules, "clock": Clock(**content["clock"])})
    log = os.open(job.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    null = os.open(os.devnull, os.O_RDONLY)
    for target, file in ((0, null), (1, log), (2, log)):
        os.dup2(file, target)
    sys.stdin = open(os.devnull)  # noqa: SIM115
    os.environ.update(job.variables)
    from titan_pt.run.leaving import leave
    from titan_pt.train import main

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))  # with the server
    _watch(job)
    arm(job.run_folder, job.counters, job.rules, job.clock)
    leave(main(["--job.config_file", job.config]))


def _watch(job: Job) -> None:
    """Record each batch that is trained on (step, rank, hash of its tensors, ids of its documents); what the job hurts.

    Pauses between the attempts to read over HTTP are short.
    """
    import hashlib

    from titan_pt.data.remote import sources
    from titan_pt.data.remote.retry import Patience
    from titan_pt.data.stream.loader import DataLoader
    from titan_pt.trainer import Trainer

    record = os.open(job.record, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    commit, one_step = DataLoader.commit, Trainer._one_step
    now = {"step": 0}

    def noted(self: Any, batch: Any) -> None:
        digest = hashlib.blake2b(digest_size=8)
        for micro_batch in batch.micro_batches:
            for tensor in vars(micro_batch).values():
                digest.update(tensor.numpy().tobytes())
        line = json.dumps([now["step"], os.environ.get("RANK", "0"), digest.hexdigest(), list(batch.documents)])
        os.write(record, f"{line}\n".encode())
        commit(self, batch)

    def step(self: Any) -> Any:
        now["step"] = self.state.step + 1
        if self.state.step and self.state.step == job.stops:
            os.kill(os.getpid(), signal.SIGTERM)
        if self.state.step and self.state.step == job.bad_weight:
            os.write(2, b"chaos: an infinite weight\n")
            weight: Any = next(iter(self.context.model.parameters())).detach()  # of a DTensor, this rank's part
            (weight.to_local() if hasattr(weight, "to_local") else weight).view(-1)[3] = float("inf")
        return one_step(self)

    quick = Patience(attempt_seconds=1.0, first_pause_seconds=0.05, longest_pause_seconds=0.2, start_seconds=30.0)
    sources.Patience = lambda **_: quick  # type: ignore[assignment,misc]
    DataLoader.commit, Trainer._one_step = noted, step  # type: ignore[method-assign]


if __name__ == "__main__":
    serve(sys.stdin, sys.stdout)
