"""Activation checkpointing, compile and sharding of the transformer, in this order."""

import torch
from torch import nn

from titan_pt.config.schema.job_config import JobConfig
from titan_pt.distributed.fsdp import shard
from titan_pt.distributed.world import World
from titan_pt.models.transformer.attention import uses_flex
from titan_pt.models.transformer.model import Transformer


def parallelize(model: nn.Module, config: JobConfig, world: World) -> nn.Module:
    """Prepare the model for a run, in place.

    Raises:
        ConfigError: the device lacks model.sdpa_backend, or cannot compile.
    """
    assert isinstance(model, Transformer)
    backend = config.model.sdpa_backend
    if backend != "auto" or uses_flex(world.device):
        from titan_pt.models.transformer.kernels import choose_kernels

        choose_kernels(model, backend, world.device, getattr(torch, config.training.mixed_precision_param))
    if config.activation_checkpoint.mode != "none":
        from titan_pt.distributed.activation_checkpoint import apply_activation_checkpoint

        apply_activation_checkpoint(model.layers, config.activation_checkpoint)
    if config.compile.enable and "model" in config.compile.components:
        from titan_pt.distributed.compile import compile_blocks

        compile_blocks(model.layers, config.compile, world.device)
    shard(model, model.layers, config, world)
    return model
