"""The context of a step function, built from a config on real ranks and in a dry run alike."""

import functools
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from titan_pt.components.lr_scheduler import PlannedSchedule
from titan_pt.components.optimizer import keep_own_rates, keep_state
from titan_pt.components.tokenizer import Tokenizer
from titan_pt.config.resolve.checks import model_args
from titan_pt.config.run_size import RunSize
from titan_pt.config.schema.job_config import Debug, JobConfig
from titan_pt.distributed.world import World
from titan_pt.protocols.context import TrainContext
from titan_pt.protocols.model_spec import get_model_spec
from titan_pt.protocols.registry import import_attribute
from titan_pt.protocols.trainer_spec import TrainerSpec


def build_context(
    spec: TrainerSpec[Any],
    config: JobConfig,
    world: World,
    tokenizer: Tokenizer,
    model: nn.Module,
    run_size: RunSize,
    *,
    materialize: Callable[[nn.Module, JobConfig, World], None],
    raise_if_preempted: Callable[[], None],
    reads_data: bool = True,
) -> TrainContext[Any]:
    """Shard and materialize a model, open the data, and build the optimizer and the learning-rate schedule.

    Args:
        model: on the meta device, as `spec.build_model` made it.
        materialize: gives the sharded model memory and, in a real run, its initial weights.
        reads_data: False leaves the dataloader None.

    Raises:
        ConfigError: the ranks, the data or the optimizer do not fit the config.
    """
    model = spec.parallelize(model, config, world)
    materialize(model, config, world)
    dataloader = spec.build_dataloader(config, tokenizer, world, run_size) if reads_data else None
    if reads_data and spec.adjust_run_size:
        run_size = spec.adjust_run_size(config, world, run_size, dataloader)
    model_spec = get_model_spec(config.model.name)
    build = spec.build_optimizers
    if config.experimental.custom_import:
        build = import_attribute("titan_pt.optimizers.building:checked")(build)
    optimizer = build(model, config)
    keep_own_rates(optimizer, config.optimizer.lr)
    return TrainContext(
        config=config,
        world=world,
        run_size=run_size,
        tokenizer=tokenizer,
        model=model,
        model_spec=model_spec,
        args=model_args(config, model_spec, tokenizer.vocab_size),
        optimizer=optimizer,
        optimizer_state=keep_state(model, optimizer, world),
        schedule=PlannedSchedule(functools.partial(spec.build_lr_schedulers, config), run_size.steps),
        dataloader=dataloader,
        raise_if_preempted=raise_if_preempted,
        spikes=config.training.spike_zscore
        and import_attribute("titan_pt.components.spikes:LossSpikes")(config.training),
        ema=config.training.ema_decay
        and import_attribute("titan_pt.components.averaged_weights:AveragedWeights")(model, config),
    )


def set_determinism(options: Debug, device: torch.device) -> None:
    """Seed torch and choose its kernels as `[debug]` says."""
    torch.manual_seed(options.seed)
    if options.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=options.deterministic_warn_only)
        if device.type == "cuda":
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
