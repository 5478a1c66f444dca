"""Sharding by FSDP2, with its mixed precision."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from titan_pt.config.schema.job_config import JobConfig
from titan_pt.distributed.init import allocate, materialize, offloads
from titan_pt.distributed.world import World

__all__ = ["allocate", "materialize", "shard"]  # all that a plugin's model needs

# Weights in the compute type that are kept whole from a step's first forward to its last backward.
SMALL_BYTES = 2**31


def shard(model: nn.Module, blocks: Iterable[nn.Module], config: JobConfig, world: World) -> None:
    """Shard each block, then the rest of the model, over the world's mesh, in place.

    Gradients are summed over ranks, not averaged: the loss is divided by the tokens of the global batch.
    """
    training = config.training
    policy = MixedPrecisionPolicy(
        param_dtype=getattr(torch, training.mixed_precision_param),
        reduce_dtype=getattr(torch, training.mixed_precision_reduce),
    )
    offload = CPUOffloadPolicy(pin_memory=world.device.type != "cpu") if offloads(config, world) else OffloadPolicy()
    reshard = _reshards(model, config)
    *inner, last = blocks
    for block in inner:
        fully_shard(block, mesh=world.mesh, reshard_after_forward=reshard, mp_policy=policy, offload_policy=offload)
    # The backward starts with the last block and the output layer: freeing them would only gather them again.
    for module in (last, model):
        fully_shard(module, mesh=world.mesh, reshard_after_forward=False, mp_policy=policy, offload_policy=offload)
    # Whole gradients add up in the type of the reduction, shards in float32.
    model.sums_once = not reshard and policy.reduce_dtype == torch.float32  # type: ignore[assignment]
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def _reshards(model: nn.Module, config: JobConfig) -> bool:
    """Whether gathered weights are freed after each use, as parallelism.fsdp_reshard_after_forward says."""
    size = getattr(torch, config.training.mixed_precision_param).itemsize
    small = size * sum(parameter.numel() for parameter in model.parameters()) <= SMALL_BYTES
    return {"always": True, "never": False, "default": not small}[config.parallelism.fsdp_reshard_after_forward]
