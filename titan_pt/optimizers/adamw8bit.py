"""torchao's AdamW with moments of 8 bits (2110.02861), made to fit sharding, checkpoints and the guarded update."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torchao.optim import AdamW8bit
from torchao.optim.subclass_8bit import OptimState8bit

from titan_pt.config.schema.job_config import Compile, JobConfig
from titan_pt.distributed.compile import check_compiler
from titan_pt.distributed.init import local_part

_LARGEST_BLOCK = 256
_SMALLEST_BLOCK = 32
_SMALLEST_TENSOR = 4096


class ShardedAdamW8bit(AdamW8bit):
    """AdamW8bit whose blocks, the values that share a scale, are parts of a row of the parameter.

    torchao's own blocks run over rows, and it quantizes a shard or not by its size: the moments would depend on the
    number of ranks. FSDP2 shards by rows, so these do not.
    """

    def _new_buffer(self, p: torch.Tensor, signed: bool) -> torch.Tensor:
        block = block_size(p)
        local = local_part(p)
        if block is None or local.numel() == 0:
            buffer = torch.zeros_like(local)
        else:
            buffer = OptimState8bit.zeros(local.shape, signed, block, local.device, dtype=local.dtype)
        return _sharded_like(p, buffer, p.shape) if isinstance(p, DTensor) else buffer


def build_adamw_8bit(_model: nn.Module, groups: list[dict[str, Any]], config: JobConfig) -> ShardedAdamW8bit:
    """The optimizer of `[optimizer]` for parameter groups.

    Raises:
        ConfigError: it has to be compiled, and there is no compiler.
    """
    options = config.optimizer
    check_compiler(
        Compile(cache_dir=config.compile.cache_dir), groups[0]["params"][0].device, 'optimizer.name = "AdamW8bit"'
    )
    return ShardedAdamW8bit(groups, lr=options.lr, betas=(options.beta1, options.beta2), eps=options.eps)


def block_size(parameter: torch.Tensor) -> int | None:
    """Number of values that share a scale; None if the moments stay in float32: vectors, small and odd matrices."""
    if parameter.ndim < 2 or parameter.numel() < _SMALLEST_TENSOR:
        return None
    block = math.gcd(parameter[0].numel(), _LARGEST_BLOCK)
    return block if block >= _SMALLEST_BLOCK else None


def state_tensors(parameter: torch.Tensor, key: str, value: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the plain tensors of one state entry by name, sharded alike: codes and scale, or the entry itself."""
    block = block_size(parameter)
    if key == "step" or block is None:
        yield key, value
        return
    local = local_part(value)
    rows, columns = parameter.shape[0], parameter[0].numel() // block
    if isinstance(local, OptimState8bit):
        codes, scale = local.codes, local.scale.view(-1, columns)
    else:  # a rank without any row of it
        codes, scale = local.to(torch.uint8), local.new_zeros(0, columns)
    if isinstance(value, DTensor):
        yield f"{key}.codes", _sharded_like(value, codes, value.shape)
        yield f"{key}.scale", _sharded_like(value, scale, torch.Size([rows, columns]))
    else:
        yield f"{key}.codes", codes
        yield f"{key}.scale", scale


def _sharded_like(tensor: DTensor, local: torch.Tensor, shape: torch.Size) -> DTensor:
    """Join the ranks' parts into one tensor; the shape is given because the last ranks may have fewer rows."""
    stride = torch.empty(shape, device="meta").stride()
    whole = DTensor.from_local(
        local, tensor.device_mesh, tensor.placements, run_check=False, shape=shape, stride=stride
    )
    return whole.to(local.device)  # type: ignore[return-value]  # with CPU offload the mesh is of another device
