"""Float8, activation checkpointing, compile and sharding of the transformer, in this order."""

import logging

import torch
from torch import nn

from titan_pt.config.schema.job_config import JobConfig
from titan_pt.distributed.init import offloads
from titan_pt.distributed.world import World
from titan_pt.models.transformer.attention import uses_flex
from titan_pt.models.transformer.model import Transformer


def parallelize(model: nn.Module, config: JobConfig, world: World) -> nn.Module:
    """Prepare the model for a run, in place.

    Raises:
        ConfigError: the device lacks model.sdpa_backend, or cannot compile.
    """
    assert isinstance(model, Transformer)
    compute_type = getattr(torch, config.training.mixed_precision_param)
    backend, float8 = config.model.sdpa_backend, config.model.converters
    if backend != "auto" or uses_flex(world.device):
        from titan_pt.models.transformer.kernels import choose_kernels

        choose_kernels(model, backend, world.device, compute_type)
    if float8:
        from titan_pt.distributed.float8 import convert_blocks

        convert_blocks(model, config, world)
    if config.activation_checkpoint.mode != "none":
        from titan_pt.distributed.activation_checkpoint import apply_activation_checkpoint

        apply_activation_checkpoint(model.layers, config.activation_checkpoint)
    if config.compile.is_on(world.device.type) and "model" in config.compile.components:
        from titan_pt.distributed.compile import compile_blocks

        compile_blocks(model.layers, config.compile, world.device)
    if config.training.enable_cpu_offload and not offloads(config, world):
        logging.getLogger("titan_pt").warning(
            "training.enable_cpu_offload: everything is in CPU memory already; it has no effect"
        )
    # torchao's layers leave the cast of the weight to FSDP2, and plugins may count on its DTensors.
    if world.size > 1 or offloads(config, world) or float8 or config.experimental.custom_import:
        from titan_pt.distributed.fsdp import shard

        shard(model, model.layers, config, world)
    else:  # the same numbers without FSDP2, whose copies of weights and gradients one rank does not need
        model.compute_type = compute_type
    return model
