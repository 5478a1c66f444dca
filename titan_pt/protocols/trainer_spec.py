"""A kind of training as a dataclass of functions, and the registry of kinds."""

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydantic import create_model

from titan_pt.config.errors import ConfigError, nearest, one_of
from titan_pt.config.run_size import RunSize, plan_run_size
from titan_pt.config.schema.job_config import JobConfig, Section

if TYPE_CHECKING:
    import torch
    from torch import nn

    from titan_pt.components.lr_scheduler import Schedule
    from titan_pt.components.tokenizer import Tokenizer
    from titan_pt.distributed.world import World
    from titan_pt.protocols.context import Data, DryRunStep, Step, TrainContext, Validator

Config = TypeVar("Config", bound=JobConfig)


@dataclass(frozen=True, kw_only=True)
class TrainerSpec(Generic[Config]):
    """The functions that `train.py` calls for one kind of training, in the order of their calls.

    `dataclasses.replace` of a built-in spec makes a new kind of training.
    """

    name: str
    config_type: type[Config] = JobConfig  # type: ignore[assignment]
    """Config of this kind of training: JobConfig, or a subclass with tables, defaults and rules of its own."""
    sections: Mapping[str, type[Section]] = field(default_factory=dict)
    """Tables to add to `config_type`, by name: a shorthand for a subclass that has these fields."""
    plan_run_size: "Callable[[Config, int], RunSize]" = plan_run_size
    """(config, number of ranks) -> batch, streams and steps of the run."""
    build_tokenizer: "Callable[[Config], Tokenizer]"
    build_model: "Callable[[Config, Tokenizer], nn.Module]"
    """(config, tokenizer) -> the model on the meta device."""
    parallelize: "Callable[[nn.Module, Config, World], nn.Module]"
    """(model, config, ranks) -> the model, checkpointed, compiled and sharded in place."""
    build_optimizers: "Callable[[nn.Module, Config], torch.optim.Optimizer]"
    build_lr_schedulers: "Callable[[Config, int], Schedule]"
    """(config, steps of the run) -> learning rate of a step."""
    build_dataloader: "Callable[[Config, Tokenizer, World, RunSize], Data]"
    adjust_run_size: "Callable[[Config, World, RunSize, Any], RunSize] | None" = None
    """(config, ranks, run size, dataloader) -> the run size, where the number of steps depends on the data."""
    build_step: "Callable[[TrainContext[Config]], Step]"
    """(context) -> the function that does one optimizer step."""
    build_validator: "Callable[[TrainContext[Config], Step], Validator | None]"
    describe: "Callable[[TrainContext[Config], float, float | None], None] | None" = None
    """(context, FLOPs of training on one token, peak FLOP/s of a rank) -> log what the run will do."""
    validates_first: bool = False
    """Validate before step 1 too."""
    build_dry_run: "Callable[[TrainerSpec[Any], TrainContext[Config]], DryRunStep] | None" = None
    """(this spec, context without a dataloader) -> the step of a dry run; None: it cannot be dry-run or planned."""

    def __post_init__(self) -> None:
        if self.sections:
            object.__setattr__(self, "config_type", with_sections(self.config_type, self.sections))
            object.__setattr__(self, "sections", {})


def with_sections(config_type: type[Config], sections: Mapping[str, type[Section]]) -> type[Config]:
    """A subclass of a config with more tables; a table with a required key is required itself."""
    fields: dict[str, Any] = {
        name: (kind, ... if any(info.is_required() for info in kind.model_fields.values()) else kind())
        for name, kind in sections.items()
    }
    return create_model(config_type.__name__, __base__=config_type, **fields)


@dataclass(frozen=True)
class BuiltinTrainer:
    """Modules of a built-in kind of training: its spec's, and its config's, which imports no torch."""

    module: str
    config_module: str
    config_class: str


BUILTIN_TRAINERS: dict[str, BuiltinTrainer] = {
    "pretrain": BuiltinTrainer("titan_pt.trainers.pretrain", "titan_pt.config.schema.job_config", "JobConfig"),
    "sft": BuiltinTrainer("titan_pt.trainers.sft.spec", "titan_pt.config.schema.sft", "SftConfig"),
    "grpo": BuiltinTrainer("titan_pt.trainers.grpo.spec", "titan_pt.config.schema.grpo", "GrpoConfig"),
}
_TRAINERS: dict[str, TrainerSpec[Any]] = {}


def register_trainer_spec(spec: TrainerSpec[Config]) -> TrainerSpec[Config]:
    """Make a kind of training known by `[job] trainer`. A second registration of a name is an error."""
    builtin = BUILTIN_TRAINERS.get(spec.name)
    # A built-in spec registers itself while its own module is imported; before that its name is taken all the same.
    if spec.name in _TRAINERS or (builtin is not None and builtin.module not in sys.modules):
        raise ValueError(f"trainer spec {spec.name!r} is registered already")
    _TRAINERS[spec.name] = spec
    return spec


def get_trainer_spec(name: str) -> TrainerSpec[Any]:
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
    """Names of all kinds of training: the built-in ones and those registered so far."""
    return {*_TRAINERS, *BUILTIN_TRAINERS}


def trainer_config(name: str) -> type[JobConfig]:
    """The config class of `[job] trainer`, found without importing torch; a ConfigError where the name is unknown."""
    if name in BUILTIN_TRAINERS:
        builtin = BUILTIN_TRAINERS[name]
        return getattr(importlib.import_module(builtin.config_module), builtin.config_class)
    return get_trainer_spec(name).config_type


def trainers_with_section(section: str) -> list[str]:
    """The kinds of training that have this TOML table beside the common ones."""
    return sorted(name for name in trainer_names() if section in trainer_config(name).model_fields)
