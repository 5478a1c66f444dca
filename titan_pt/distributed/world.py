"""The ranks of a run: device, process groups, mesh, and the few collectives a trainer needs."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from titan_pt.config.errors import ConfigError
from titan_pt.config.job_config import JobConfig

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """All ranks share the data; the mesh is (replicate, shard).

    `control` is a gloo group for flags and small Python objects: it works whatever the device is doing. `background`
    is another one, for the thread that writes checkpoints.
    """

    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh
    control: dist.ProcessGroup
    background: dist.ProcessGroup

    @property
    def is_main(self) -> bool:
        """Rank 0 writes files."""
        return self.rank == 0

    def add(self, *counts: int) -> list[int]:
        """Each count summed over all ranks."""
        if self.size == 1:
            return list(counts)
        values = torch.tensor(counts, dtype=torch.int64)
        dist.all_reduce(values, group=self.control)
        return values.tolist()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return self.add(flag)[0] > 0

    def broadcast(self, value: T | None, group: dist.ProcessGroup | None = None) -> T:
        """Rank 0's value on every rank."""
        values: list[T | None] = [value]
        dist.broadcast_object_list(values, src=0, group=group or self.control)
        return values[0]  # type: ignore[return-value]

    def gather(self, value: T, group: dist.ProcessGroup | None = None) -> list[T]:
        """Every rank's value on every rank, in rank order."""
        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value, group=group or self.control)
        return values  # type: ignore[return-value]

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, on the device, in place."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def max(self, value: torch.Tensor) -> torch.Tensor:
        """The largest of each element over ranks, on the device, in place."""
        if self.size > 1:
            dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return value

    def together(self, action: Callable[[], T]) -> T:
        """The action's value on this rank; a ConfigError of any rank is raised on all, so that none waits for it."""
        value: T | None = None
        problems: list[str] = []
        try:
            value = action()
        except ConfigError as error:
            problems = error.problems
        found = dict.fromkeys(problem for rank in self.gather(problems) for problem in rank)
        if found:
            raise ConfigError(*found)
        return value  # type: ignore[return-value]

    def on_main(self, action: Callable[[], T]) -> T:
        """Rank 0's value of the action on every rank, or its ConfigError."""
        return self.broadcast(self.together(lambda: action() if self.is_main else None))

    def barrier(self) -> None:
        """Wait for all ranks."""
        dist.barrier(group=self.control)


def world_size() -> int:
    """The number of ranks this process was launched with."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def find_device() -> torch.device:
    """This rank's accelerator, or the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None or accelerator.type == "mps":  # FSDP2 does not run on Apple's GPUs
        return torch.device("cpu")
    device = torch.device(accelerator.type, int(os.environ.get("LOCAL_RANK", "0")))
    torch.accelerator.set_device_index(device.index)
    return device


def start_world(config: JobConfig, run_folder: Path) -> World:
    """Join the other ranks. Without a launcher this process is the only one."""
    device = find_device()
    size = world_size()
    timeout = timedelta(seconds=config.comm.init_timeout_seconds)
    if device.type == "cuda" and config.comm.trace_buf_size:
        _enable_flight_recorder(config, run_folder)
    backend = "gloo"
    if device.type != "cpu":
        backend = f"cpu:gloo,{device.type}:{dist.get_default_backend_for_device(device)}"
    if "RANK" in os.environ:
        dist.init_process_group(backend, timeout=timeout)
    else:
        dist.init_process_group(backend, timeout=timeout, store=dist.HashStore(), rank=0, world_size=1)
    replicate = config.parallelism.data_parallel_replicate_degree
    if replicate > 1:
        mesh = init_device_mesh(device.type, (replicate, size // replicate), mesh_dim_names=("replicate", "shard"))
    else:
        mesh = init_device_mesh(device.type, (size,), mesh_dim_names=("shard",))
    # Their limits are long: a rank may wait here for another one's validation, download or checkpoint.
    patient = timedelta(hours=2)
    return World(
        rank=dist.get_rank(),
        size=size,
        device=device,
        mesh=mesh,
        control=dist.new_group(backend="gloo", timeout=patient),
        background=dist.new_group(backend="gloo", timeout=patient),
    )


def stop_world() -> None:
    """Leave the process groups."""
    if dist.is_initialized():
        dist.destroy_process_group()


def tighten_timeouts(world: World, seconds: float) -> None:
    """The first step compiles and may be slow; the later ones have a limit of their own."""
    for group in [*world.mesh.get_all_groups(), dist.group.WORLD]:
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), group)


def _enable_flight_recorder(config: JobConfig, run_folder: Path) -> None:
    folder = run_folder / config.comm.save_traces_folder
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", str(config.comm.trace_buf_size))
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
    os.environ.setdefault("TORCH_FR_DUMP_TEMP_FILE", str(folder / "rank_"))
