"""Memory for the weights, and initial weights that are the same on any number of ranks."""

import hashlib
import math
from collections.abc import Callable

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from titan_pt.config.schema.job_config import JobConfig
from titan_pt.distributed.world import World

Draw = Callable[[str, torch.Tensor, torch.Generator], None]


def parameter_name(name: str) -> str:
    """Remove from a parameter's name what activation checkpointing adds."""
    return name.replace("_checkpoint_wrapped_module.", "")


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a tensor that this rank holds; a plain tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a sharded tensor, which is a collective; a plain tensor itself."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def keyed_generator(seed: int, name: str) -> torch.Generator:
    """Create a CPU generator whose numbers depend on (seed, name) alone."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


@torch.no_grad()
def fill_keyed(model: nn.Module, seed: int, draw: Draw) -> None:
    """Fill every parameter: `draw(name, full, generator)` fills the whole tensor, each rank keeps its shard.

    A sharded tensor's own CPU random numbers would repeat on every rank.
    """
    for raw_name, parameter in model.named_parameters():
        name = parameter_name(raw_name)
        full = torch.empty(parameter.shape, dtype=torch.float32)
        draw(name, full, keyed_generator(seed, name))
        copy_full(parameter, full)


def fill_truncated_normal(tensor: torch.Tensor, std: float, bound: float, generator: torch.Generator) -> None:
    """Draw from a normal distribution of mean 0, cut off at `bound` standard deviations, by its inverse.

    `torch.nn.init.trunc_normal_` draws other numbers of the same generator from one version of torch to the next.
    """
    reach = math.erf(bound / math.sqrt(2.0))
    for part in tensor.view(-1).split(2**22):  # in float64, where versions of erfinv agree; a part needs little memory
        uniform = torch.empty(part.shape, dtype=torch.float64).uniform_(-reach, reach, generator=generator)
        part.copy_(uniform.erfinv_().mul_(math.sqrt(2.0) * std).clamp_(-bound * std, bound * std))


@torch.no_grad()
def copy_full(parameter: torch.Tensor, full: torch.Tensor) -> None:
    """Fill a parameter with a whole tensor that every rank has; each keeps its shard."""
    if isinstance(parameter, DTensor):
        # src_data_rank=None: nothing is sent.
        full = distribute_tensor(full, parameter.device_mesh, parameter.placements, src_data_rank=None)
    local_part(parameter).copy_(local_part(full))


def offloads(config: JobConfig, world: World) -> bool:
    """Whether training.enable_cpu_offload is on and has an effect on this device."""
    return config.training.enable_cpu_offload and world.device.type != "cpu"


def materialize(model: nn.Module, config: JobConfig, world: World) -> None:
    """Move a model from the meta device to the real one, and fill it with initial weights and buffers."""
    allocate(model, config, world)
    model.init_weights(config.debug.seed)  # type: ignore[operator]
    model.train()


def allocate(model: nn.Module, config: JobConfig, world: World) -> None:
    """Move a model from the meta device to the real one, whose memory is not initialized."""
    model.to_empty(device="cpu" if offloads(config, world) else world.device)
    for module in model.modules():  # FSDP offloads parameters; buffers are used where the computing is
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, buffer.to(world.device))
