"""A kind of training as a dataclass of functions, and the registry of kinds."""

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from titan_pt.config.errors import ConfigError, nearest, one_of
from titan_pt.config.run_size import RunSize, plan_run_size
from titan_pt.config.schema import grpo, sft
from titan_pt.config.schema.job_config import Section

if TYPE_CHECKING:
    import torch
    from torch import nn

    from titan_pt.components.lr_scheduler import Schedule
    from titan_pt.components.tokenizer import Tokenizer
    from titan_pt.config.run_size import RunSize
    from titan_pt.config.schema.job_config import JobConfig
    from titan_pt.distributed.world import World
    from titan_pt.protocols.context import Data, DryRunStep, Step, TrainContext, Validator


@dataclass(frozen=True, kw_only=True)
class TrainerOptions:
    """What a kind of training adds to the config."""

    sections: Mapping[str, type[Section]] = field(default_factory=dict)
    """TOML tables of its own, by name."""
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Keys of the common tables whose default differs here."""
    check: "Callable[[JobConfig], Iterator[tuple[list[str], str]]] | None" = None
    """Rules between fields: (the fields, what is wrong) of each broken one."""


@dataclass(frozen=True, kw_only=True)
class TrainerSpec(TrainerOptions):
    """What `train.py` calls, top to bottom. `dataclasses.replace` of a built-in spec makes a new kind of training."""

    name: str
    plan_run_size: "Callable[[JobConfig, int], RunSize]" = plan_run_size
    """(config, number of ranks) -> the run in numbers."""
    build_tokenizer: "Callable[[JobConfig], Tokenizer]"
    build_model: "Callable[[JobConfig, Tokenizer], nn.Module]"
    """On the meta device."""
    parallelize: "Callable[[nn.Module, JobConfig, World], nn.Module]"
    build_optimizers: "Callable[[nn.Module, JobConfig], torch.optim.Optimizer]"
    build_lr_schedulers: "Callable[[JobConfig, int], Schedule]"
    """(config, steps of the run) -> learning rate of a step."""
    build_dataloader: "Callable[[JobConfig, Tokenizer, World, RunSize], Data]"
    adjust_run_size: "Callable[[JobConfig, World, RunSize, Any], RunSize] | None" = None
    """(config, ranks, run_size, the data) -> the run size, where the number of steps depends on the data."""
    build_step: "Callable[[TrainContext], Step]"
    """What one optimizer step does."""
    build_validator: "Callable[[TrainContext, Step], Validator | None]"
    describe: "Callable[[TrainContext, float, float | None], None] | None" = None
    """(context, FLOPs of training on one token, peak FLOP/s of a rank) -> log what the run will do."""
    validates_first: bool = False
    """Validate before step 1 too."""
    build_dry_run: "Callable[[TrainerSpec, TrainContext], DryRunStep] | None" = None
    """(this spec, context without a dataloader) -> what a dry run does; None: it cannot be dry-run or planned."""


@dataclass(frozen=True)
class BuiltinTrainer:
    """Where a built-in spec lives, and its options: known without importing torch."""

    module: str
    options: TrainerOptions


BUILTIN_TRAINERS: dict[str, BuiltinTrainer] = {
    "pretrain": BuiltinTrainer("titan_pt.trainers.pretrain", TrainerOptions()),
    "sft": BuiltinTrainer(
        "titan_pt.trainers.sft.spec", TrainerOptions(sections=sft.SECTIONS, defaults=sft.DEFAULTS, check=sft.check)
    ),
    "grpo": BuiltinTrainer(
        "titan_pt.trainers.grpo.spec",
        TrainerOptions(sections=grpo.SECTIONS, defaults=grpo.DEFAULTS, check=grpo.check),
    ),
}
_TRAINERS: dict[str, TrainerSpec] = {}


def register_trainer_spec(spec: TrainerSpec) -> TrainerSpec:
    """Make a kind of training known by `[job] trainer`. A second registration of a name is an error."""
    builtin = BUILTIN_TRAINERS.get(spec.name)
    # A built-in spec registers itself while its own module is imported; before that its name is taken all the same.
    if spec.name in _TRAINERS or (builtin is not None and builtin.module not in sys.modules):
        raise ValueError(f"trainer spec {spec.name!r} is registered already")
    _TRAINERS[spec.name] = spec
    return spec


def get_trainer_spec(name: str) -> TrainerSpec:
    """The spec of `[job] trainer`.

    Raises:
        ConfigError: the name is unknown; lists the known ones.
    """
    if name not in _TRAINERS and name in BUILTIN_TRAINERS:
        importlib.import_module(BUILTIN_TRAINERS[name].module)
    if name not in _TRAINERS:
        known = trainer_names()
        raise ConfigError(f"job.trainer = {name!r}: unknown; known are {one_of(known)}{nearest(name, known)}")
    return _TRAINERS[name]


def trainer_names() -> set[str]:
    """All kinds of training: the built-in ones and those registered so far."""
    return {*_TRAINERS, *BUILTIN_TRAINERS}


def trainer_options(name: str) -> TrainerOptions:
    """What `[job] trainer` adds to the config; a ConfigError where the name is unknown."""
    if name in BUILTIN_TRAINERS:
        return BUILTIN_TRAINERS[name].options
    return get_trainer_spec(name)


def trainers_with_section(section: str) -> list[str]:
    """The kinds of training that bring this TOML table."""
    return sorted(name for name in trainer_names() if section in trainer_options(name).sections)


__all__ = [
    "TrainerOptions",
    "TrainerSpec",
    "get_trainer_spec",
    "register_trainer_spec",
    "trainer_names",
    "trainer_options",
    "trainers_with_section",
]
