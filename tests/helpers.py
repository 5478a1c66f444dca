"""A tiny experiment, run as a user does (a process, or the launcher's) or in this process, which is seconds faster."""

import functools
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import forked
import tomli_w
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from titan_pt.components import flops
from titan_pt.components.checkpoint.reader import SafeReader, TensorOnlyPlanner
from titan_pt.run import signals as preemption

flops.measure_matmul = functools.cache(flops.measure_matmul)  # a third of a tiny run's time
ROOT = Path(__file__).resolve().parent.parent
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)

TINY: dict[str, dict[str, Any]] = {
    "model": {
        "num_layers": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "head_dim": 32,
        "num_heads": 2,
        "num_kv_heads": 1,
    },
    "training": {
        "steps": 6,
        "seq_len": 128,
        "local_batch_size": 4,
        "global_batch_size": 16,
        "mixed_precision_param": "float32",
    },
    "lr_scheduler": {"warmup_steps": 3},
    "metrics": {"log_freq": 1, "enable_tensorboard": False},
    "data": {"sources": [{"name": "arithmetic"}]},
}


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def last_line(self) -> str:
        return self.stderr.strip().splitlines()[-1]


def write_toml(folder: Path, **tables: dict[str, Any]) -> Path:
    """`folder/run.toml`: TINY with these keys on top, and `folder/run` as its run folder."""
    folder.mkdir(parents=True, exist_ok=True)
    merged: dict[str, dict[str, Any]] = {"job": {"dump_folder": str(folder / "run")}, **TINY}
    for name, table in tables.items():
        merged[name] = {**merged.get(name, {}), **table}
    path = folder / "run.toml"
    path.write_text(tomli_w.dumps(merged))
    return path


def write_faulty(folder: Path, fault: dict[str, Any], **tables: dict[str, Any]) -> Path:
    """The same with the trainer of `faults.py`."""
    job = {"dump_folder": str(folder / "run"), "trainer": "faulty", **tables.pop("job", {})}
    return write_toml(folder, job=job, experimental={"custom_import": "faults"}, fault=fault, **tables)


def telling(folder: Path) -> dict[str, Any]:
    """`[job]` with a command that writes to `folder/told` what it is told of the end of each run."""
    told = folder / "told"
    return {"notify": f"""sh -c 'echo "$TITAN_PT_CODE $TITAN_PT_REASON in $TITAN_PT_FOLDER" >> {told}'"""}


def train_here(config: Path, *flags: str) -> int:
    """`python -m titan_pt.train` in this process, one rank; its signal handlers and log are taken away again."""
    from titan_pt.run.signals import install_handlers
    from titan_pt.train import main

    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    log = logging.getLogger("titan_pt")
    before = log.handlers, log.level, log.propagate  # a fixture of a module may call this, before any test of it
    try:
        return int(main(["--job.config_file", str(config), *flags]))
    finally:
        install_handlers()  # forgets the signals of this run
        log.handlers, log.level, log.propagate = before
        for number, handler in handlers.items():
            signal.signal(number, handler)
        preemption._requested.clear()  # a signal of this run is none of the next test's


def command(config: Path, *flags: str, ranks: int = 0) -> list[str]:
    """The command line of a run: `titan_pt.train`, or with `ranks` the launcher's."""
    launcher = ["titan_pt.launch", "--standalone", "--nproc_per_node", str(ranks), "-m"] if ranks else []
    return [sys.executable, "-m", *launcher, "titan_pt.train", "--job.config_file", str(config), *flags]


def environment(**variables: str) -> dict[str, str]:
    """Of a process that can import titan_pt and what is in tests/, with these on top of this process's own."""
    return {**os.environ, "PYTHONPATH": f"{ROOT / 'tests'}{os.pathsep}{ROOT}", **variables}


def run(arguments: list[str], timeout: float = 120, input: str | None = None, **options: Any) -> Result:
    """Run a command to its end; `env` is added to this process's environment. `faults` can be imported."""
    env = environment(**options.pop("env", {}))
    pipe = subprocess.PIPE
    stdin = None if input is None else pipe
    with forked.Popen(arguments, stdin=stdin, stdout=pipe, stderr=pipe, text=True, env=env, **options) as process:
        try:
            stdout, stderr = process.communicate(input, timeout)
        except BaseException:
            process.kill()
            raise
    return Result(process.returncode, stdout, stderr)


def start(arguments: list[str], log: Path, cwd: Path | None = None, **variables: str) -> forked.Popen:
    """A process that trains, its output appended to `log`."""
    with log.open("a") as file:
        command = [sys.executable, "-m", "titan_pt.train", *arguments]
        return forked.Popen(command, stdout=file, stderr=file, cwd=cwd, env=environment(**variables))


def start_ranks(
    arguments: list[str], ranks: int, folder: Path, cwd: Path | None = None, **variables: str
) -> list[forked.Popen]:
    """All ranks of a run on this machine, as a launcher starts them; rank R writes `folder/rank-R.log`."""
    if ranks == 1:
        return [start(arguments, folder / "rank-0.log", cwd, **variables)]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    variables |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        start(arguments, folder / f"rank-{rank}.log", cwd, RANK=str(rank), LOCAL_RANK=str(rank), **variables)
        for rank in range(ranks)
    ]


def launch(config: Path, *flags: str, ranks: int = 0, **options: Any) -> Result:
    """Train by a command: of one process, or with `ranks` the launcher's."""
    return run(command(config, *flags, ranks=ranks), **options)


def train(
    config: Path,
    *flags: str,
    ranks: int = 1,
    timeout: float = 120,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
) -> Result:
    """Train in processes of its own, without a launcher; the first code that is not 0, the output of rank 0 last."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--job.config_file", str(config), *flags]
        processes = start_ranks(arguments, ranks, Path(folder), cwd, **(env or {}))
        end = time.monotonic() + timeout
        while None in (codes := [process.poll() for process in processes]) and time.monotonic() < end:
            time.sleep(0.01)
        for process in processes:
            process.kill()
            process.wait()
        logs = [(Path(folder) / f"rank-{rank}.log").read_text() for rank in reversed(range(ranks))]
        assert None not in codes, f"no end after {timeout} s: {codes}\n{logs}"
    return Result(next((code for code in codes if code), 0), "", "".join(logs))


def read_rows(run_folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl."""
    return [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]


def losses(run_folder: Path) -> dict[int, float]:
    """The loss of each logged step; a step twice fails."""
    rows = read_rows(run_folder)
    steps = [row["step"] for row in rows]
    assert steps == sorted(set(steps)), steps
    return {row["step"]: row["loss"] for row in rows}


def read_tensors(step_folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, whole, by name."""
    index = SafeReader(step_folder / "tensors").read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in index.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    assert len(tensors) == len(index)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load(tensors, storage_reader=SafeReader(step_folder / "tensors"), planner=TensorOnlyPlanner(), no_dist=True)
    return tensors


def read_json(step_folder: Path, name: str) -> dict[str, Any]:
    """One of a checkpoint's JSON files."""
    return json.loads((step_folder / f"{name}.json").read_text())


def assert_same_step(one: Path, other: Path) -> None:
    """Two checkpoints hold the same run, to the last bit: weights, optimizer, counters, random states, data.

    Whether a signal came between the step and its log row is no part of that.
    """
    a, b = read_tensors(one), read_tensors(other)
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different, different
    trains = [read_json(step, "train") for step in (one, other)]
    assert trains[0] == trains[1]
    assert read_json(one, "data") == read_json(other, "data")
