"""What is wrong with a point, as far as it can be known before its run starts."""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress

import torch

from titan_pt.components.checkpoint.step_folders import has_steps
from titan_pt.components.checkpoint.steps import find_initial
from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.data.sources.registry import check_sources
from titan_pt.protocols.trainer_spec import get_trainer_spec
from titan_pt.sweeps.grid import Point


def check_points(points: Sequence[Point], stopped: Callable[[], bool]) -> None:
    """Open what each point names, such as files, a tokenizer and a model without memory; ends early where stopped.

    Raises:
        ConfigError: what any of them lacks, each mistake once.
    """
    problems: list[str] = []
    for point in points:
        if stopped():
            return
        try:
            _check(point.config)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(*dict.fromkeys(problems))


def _check(config: JobConfig) -> None:
    spec = get_trainer_spec(config.job.trainer)
    check_sources([*config.data.sources, *(config.validation.sources if config.validation.enable else ())])
    ranks = max(1, torch.accelerator.device_count())
    with suppress(ValueError):  # torchrun's names, such as gpu
        ranks = int(os.environ.get("NGPU", ranks))
    spec.plan_run_size(config, ranks)
    spec.build_model(config, spec.build_tokenizer(config))
    if config.checkpoint.initial_load_path and not has_steps(config):
        find_initial(config.checkpoint.initial_load_path)
