"""The ranks of a run: device, process groups, mesh, and the few collectives a trainer needs."""

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.run.exit_codes import OtherRankFailed, Preempted, Stalled
from titan_pt.run.heartbeat import waiting

T = TypeVar("T")

# Of collectives: ranks wait for whom gets on, and a watcher ends who does not (run/watchdog.py).
_NO_LIMIT = timedelta(days=365)


@dataclass(frozen=True)
class World:
    """All ranks share the data; the mesh is (replicate, shard).

    Three gloo groups work whatever the device is doing: `flags` for flags and counts, to which all ranks come at once;
    `control` for small Python objects, where ranks wait for another one's work; `background` for the thread that
    writes checkpoints.
    """

    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh
    flags: dist.ProcessGroup
    control: dist.ProcessGroup
    background: dist.ProcessGroup

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes the files of a run."""
        return self.rank == 0

    def add(self, *counts: int) -> list[int]:
        """Sum each count over all ranks.

        Raises:
            RuntimeError: a rank has left.
        """
        if self.size == 1:
            return list(counts)
        values = torch.tensor(counts, dtype=torch.int64)
        try:
            dist.all_reduce(values, group=self.flags)
        except RuntimeError as error:
            raise RuntimeError(f"another rank has left: {error}") from error
        return values.tolist()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return self.add(flag)[0] > 0

    def broadcast(self, value: T | None, group: dist.ProcessGroup | None = None) -> T:
        """Return rank 0's value on every rank."""
        values: list[T | None] = [value]
        with waiting() if group is None else contextlib.nullcontext():
            dist.broadcast_object_list(values, src=0, group=group or self.control)
        return values[0]  # type: ignore[return-value]

    def gather(self, value: T, group: dist.ProcessGroup | None = None) -> list[T]:
        """Return the values of all ranks on every rank, in rank order."""
        values: list[T | None] = [None] * self.size
        with waiting() if group is None else contextlib.nullcontext():
            dist.all_gather_object(values, value, group=group or self.control)
        return values  # type: ignore[return-value]

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over ranks, on the device, in place."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def max(self, value: torch.Tensor) -> torch.Tensor:
        """Take the largest of each element over ranks, on the device, in place."""
        if self.size > 1:
            dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return value

    def together(self, action: Callable[[], T]) -> T:
        """Run an action on every rank, wait for all, and return this rank's value.

        A ConfigError or Preempted of any rank is raised on all, so that none waits for it; any other error on its own
        rank, and on the others one that names it.
        """
        value: T | None = None
        problems: list[str] = []
        stopped: str | None = None
        failure: Exception | None = None
        try:
            value = action()
        except ConfigError as error:
            problems = error.problems
        except Preempted as error:
            stopped = str(error)
        except Exception as error:
            failure = error
        ends = self.gather((problems, stopped, failure and f"rank {self.rank}: {type(failure).__name__}: {failure}"))
        if failures := [why for *_, why in ends if why]:
            raise failure or OtherRankFailed(failures[0])
        found = dict.fromkeys(problem for rank_problems, *_ in ends for problem in rank_problems)
        if found:
            raise ConfigError(*found)
        stops = [why for _, why, _ in ends if why is not None]
        if stops:
            why = next(filter(None, stops), "")
            raise Stalled(why) if why else Preempted
        return value  # type: ignore[return-value]

    def on_main(self, action: Callable[[], T]) -> T:
        """Run an action on rank 0 and return its value, or raise its ConfigError, on every rank."""
        return self.broadcast(self.together(lambda: action() if self.is_main else None))


def world_size() -> int:
    """The number of ranks this process was launched with.

    Raises:
        ConfigError: a launcher's variables are incomplete, as those that are left over may be, or are no numbers.
    """
    rank, size = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if rank is None and size in (None, "", "1"):
        return 1
    from titan_pt.distributed.launched import launched_size

    return launched_size()


def find_device() -> torch.device:
    """Find this rank's accelerator, or else the CPU.

    Raises:
        ConfigError: there are more ranks here than accelerators.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None or accelerator.type == "mps":  # FSDP2 does not run on Apple's GPUs
        return torch.device("cpu")
    index, count = int(os.environ.get("LOCAL_RANK", "0")), torch.accelerator.device_count()
    num_workers = max(index + 1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if num_workers > count:
        raise ConfigError(
            f"NGPU or --nproc_per_node = {num_workers}: above the number of accelerators here, {count}; leave it out"
        )
    device = torch.device(accelerator.type, index)
    torch.accelerator.set_device_index(device.index)
    return device


def start_world(config: JobConfig, run_folder: Path, *, alone: bool = False) -> World:
    """Join the other ranks. Without a launcher, or `alone` in spite of its variables, this process is the only one.

    Raises:
        CannotStart: the ranks do not meet.
    """
    device = find_device()
    size = 1 if alone else world_size()
    timeout = timedelta(seconds=config.comm.init_timeout_seconds)
    if device.type == "cuda" and config.comm.trace_buf_size:
        from titan_pt.distributed.flight_recorder import enable_flight_recorder

        enable_flight_recorder(config.comm, run_folder)
    backend = "gloo"
    if device.type != "cpu":
        backend = f"cpu:gloo,{device.type}:{dist.get_default_backend_for_device(device)}"
    if "RANK" in os.environ and not alone:
        from titan_pt.distributed.launched import meet

        meet(backend, timeout)
    else:
        dist.init_process_group(backend, timeout=timeout, store=dist.HashStore(), rank=0, world_size=1)
    mesh = build_mesh(device.type, size, config)
    for group in [*mesh.get_all_groups(), dist.group.WORLD]:
        dist.distributed_c10d._set_pg_timeout(_NO_LIMIT, group)
    groups = {name: dist.new_group(backend="gloo", timeout=_NO_LIMIT) for name in ("flags", "control", "background")}
    return World(rank=dist.get_rank(), size=size, device=device, mesh=mesh, **groups)


def build_mesh(device_type: str, size: int, config: JobConfig) -> DeviceMesh:
    """Build the mesh (replicate, shard), or (shard) where there is one copy of the model."""
    replicate = config.parallelism.data_parallel_replicate_degree
    if replicate > 1:
        return init_device_mesh(device_type, (replicate, size // replicate), mesh_dim_names=("replicate", "shard"))
    return init_device_mesh(device_type, (size,), mesh_dim_names=("shard",))


def sum_over_ranks(model: nn.Module, *, last: bool) -> None:
    """Let the next backward sum gradients over the ranks where it is the last of a step.

    Up to then gathered weights stay whole. A model that frees them sooner sums in each backward.
    """
    if getattr(model, "sums_once", False):  # set by `fsdp.shard`
        for switch in ("set_requires_gradient_sync", "set_is_last_backward", "set_reshard_after_backward"):
            getattr(model, switch)(last)


def stop_world() -> None:
    """Leave the process groups."""
    if dist.is_initialized():
        dist.destroy_process_group()
