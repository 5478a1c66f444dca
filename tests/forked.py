"""Runs in processes of their own that do not import torch again: a server that has imported it forks them.

A process of a test spends most of its seconds on imports. Signals, kills, exit codes and ranks are the same in a fork.
Tests of the launcher, of shell scripts and of imports start real processes.
"""

import multiprocessing
import os
import socket
import sys
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

PRELOADED = [
    "numpy.random",
    "titan_pt.build",
    "titan_pt.components.checkpoint.run_state",
    "titan_pt.data.builtin.sources",
    "titan_pt.data.sources.opening",
    "titan_pt.data.stream.loader",
    "titan_pt.distributed.activation_checkpoint",
    "titan_pt.distributed.world",
    "titan_pt.models.transformer.parallelize",
    "titan_pt.trainer",
    "titan_pt.trainers.pretrain",
    "titan_pt.trainers.summary",
    "titan_pt.train",
    "torch._dynamo",
]


def start(arguments: list[str], log: Path, cwd: Path | None = None, **variables: str) -> BaseProcess:
    """One process that trains, its output appended to `log`; with `pid`, `join`, `kill` and `exitcode`."""
    context = multiprocessing.get_context("forkserver")  # one server for all runs of this process
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=train, args=(arguments, log, cwd, variables))
    process.start()
    return process


def start_ranks(
    arguments: list[str], ranks: int, folder: Path, cwd: Path | None = None, **variables: str
) -> list[BaseProcess]:
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


def train(arguments: list[str], log: Path, cwd: Path | None, variables: Mapping[str, str]) -> None:
    """`python -m titan_pt.train` in the forked process."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(variables)
    if cwd:
        os.chdir(cwd)
        sys.path.insert(0, str(cwd))
    from titan_pt.run.leaving import leave
    from titan_pt.train import main

    leave(main(arguments))
