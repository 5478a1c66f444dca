"""What a step function is given, of a model that is sharded and in memory."""

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from titan_pt.components.tokenizer import Tokenizer
from titan_pt.config.run_size import RunSize
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.distributed.world import World
from titan_pt.protocols.context import TrainContext
from titan_pt.protocols.trainer_spec import TrainerSpec
from titan_pt.run.deadline import PlannedSchedule


def build_train_context(
    spec: TrainerSpec,
    config: JobConfig,
    world: World,
    *,
    run_size: RunSize,
    tokenizer: Tokenizer,
    model: nn.Module,
    dataloader: Any,
    raise_if_preempted: Callable[[], None],
) -> TrainContext:
    """The spec's optimizer and schedule for this model, with all the rest."""
    return TrainContext(
        config=config,
        world=world,
        run_size=run_size,
        tokenizer=tokenizer,
        model=model,
        optimizer=spec.build_optimizers(model, config),
        schedule=PlannedSchedule(functools.partial(spec.build_lr_schedulers, config), run_size.steps),
        dataloader=dataloader,
        raise_if_preempted=raise_if_preempted,
    )
