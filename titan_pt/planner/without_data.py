"""The context of a run that opens no data and no tokenizer, for dry runs and benchmarks."""

from collections.abc import Callable
from typing import Any

from torch import nn

from titan_pt.build import build_context
from titan_pt.config.run_size import RunSize
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.distributed.init import materialize
from titan_pt.distributed.world import World
from titan_pt.planner.sized_tokenizer import SizedTokenizer, tokenizer_size
from titan_pt.protocols.context import TrainContext
from titan_pt.protocols.trainer_spec import TrainerSpec


def build_without_data(
    config: JobConfig,
    spec: TrainerSpec[Any],
    world: World,
    run_size: RunSize | None = None,
    *,
    materialize: Callable[[nn.Module, JobConfig, World], None] = materialize,
    raise_if_preempted: Callable[[], None] = lambda: None,
) -> TrainContext[Any]:
    """Build the context of a real run, without anything that opens a file; its dataloader is None.

    Args:
        run_size: None: the one of these ranks.
        materialize: see `build_context`.
    """
    tokenizer = SizedTokenizer(tokenizer_size(config))
    return build_context(
        spec,
        config,
        world,
        tokenizer,
        spec.build_model(config, tokenizer),
        run_size or spec.plan_run_size(config, world.size),
        materialize=materialize,
        raise_if_preempted=raise_if_preempted,
        reads_data=False,
    )
