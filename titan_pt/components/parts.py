"""What a step function is given, of a model that is sharded and in memory."""

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from titan_pt.components.deadline import PlannedSchedule
from titan_pt.components.tokenizer import Tokenizer
from titan_pt.config.budget import Budget
from titan_pt.config.job_config import JobConfig
from titan_pt.distributed.world import World
from titan_pt.protocols.step import StepParts
from titan_pt.protocols.trainer_spec import TrainerSpec


def build_step_parts(
    spec: TrainerSpec,
    config: JobConfig,
    world: World,
    *,
    budget: Budget,
    tokenizer: Tokenizer,
    model: nn.Module,
    dataloader: Any,
    raise_if_preempted: Callable[[], None],
) -> StepParts:
    """The spec's optimizer and schedule for this model, with all the rest."""
    return StepParts(
        config=config,
        world=world,
        budget=budget,
        tokenizer=tokenizer,
        model=model,
        optimizer=spec.build_optimizers(model, config),
        schedule=PlannedSchedule(functools.partial(spec.build_lr_schedulers, config), budget.steps),
        dataloader=dataloader,
        raise_if_preempted=raise_if_preempted,
    )
