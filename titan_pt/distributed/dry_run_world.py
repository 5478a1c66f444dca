"""A world of any number of ranks in this one process: its collectives move nothing, its tensors hold no numbers.

For a dry run and the planner. Shapes, sharding and memory are those of rank 0 of a real run.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.distributed.init import allocate
from titan_pt.distributed.world import World, build_mesh

T = TypeVar("T")

MOST_RANKS = 4096
_DEVICE = torch.device("cpu")


class DryRunWorld(World):
    """The world of rank 0, where every other rank has equal values."""

    def add(self, *counts: int) -> list[int]:
        return [count * self.size for count in counts]

    def broadcast(self, value: T | None, group: dist.ProcessGroup | None = None) -> T:
        return value  # type: ignore[return-value]

    def gather(self, value: T, group: dist.ProcessGroup | None = None) -> list[T]:
        return [value] * self.size

    def together(self, action: Callable[[], T]) -> T:
        return action()


@contextlib.contextmanager
def dry_run_world(config: JobConfig, size: int) -> Iterator[DryRunWorld]:
    """A world of `size` ranks in this process; inside, tensors have no memory and cannot be read."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)
    try:
        mesh = build_mesh(_DEVICE.type, size, config)  # before the fake mode: it reads its own tensor of ranks
        group = dist.group.WORLD
        assert group is not None
        world = DryRunWorld(rank=0, size=size, device=_DEVICE, mesh=mesh, flags=group, control=group, background=group)
        with FakeTensorMode():
            yield world
    finally:
        dist.destroy_process_group()


def allocate_without_numbers(model: nn.Module, config: JobConfig, world: World) -> None:
    """`allocate` in such a world: torch cannot swap parameters that are not sharded for others without numbers."""
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        allocate(model, config, world)
        return
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            empty = torch.empty_like(parameter, device=world.device)
            new = made.setdefault(id(parameter), nn.Parameter(empty, parameter.requires_grad))
            module.register_parameter(name, new)
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty_like(buffer, device=world.device))


def dry_run_size() -> int:
    """The number of ranks of a dry run: NGPU, or under torchrun WORLD_SIZE; 1 without either.

    Raises:
        ConfigError: it is not a number of ranks.
    """
    name = "WORLD_SIZE" if "RANK" in os.environ else "NGPU"
    text = os.environ.get(name) or "1"
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= MOST_RANKS):
        raise ConfigError(f"{name} = {text!r}: the ranks of a dry run; must be an integer from 1 to {MOST_RANKS}")
    return int(text)
