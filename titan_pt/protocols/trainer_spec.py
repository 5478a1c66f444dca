"""A kind of training as a dataclass of functions, and the registry of kinds."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from titan_pt.config.run_size import RunSize, plan_run_size
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.config.schema.section import Section
from titan_pt.protocols.registry import Registry, import_attribute

if TYPE_CHECKING:
    import torch
    from torch import nn

    from titan_pt.components.lr_scheduler import Schedule
    from titan_pt.components.tokenizer import Tokenizer
    from titan_pt.distributed.world import World
    from titan_pt.protocols.context import Step, TrainContext, Validator
    from titan_pt.protocols.dry_run_step import DryRunStep
    from titan_pt.protocols.parts import BaseDataLoader

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
    build_dataloader: "Callable[[Config, Tokenizer, World, RunSize], BaseDataLoader]"
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
            from titan_pt.protocols.own_sections import with_sections

            object.__setattr__(self, "config_type", with_sections(self.config_type, self.sections))
            object.__setattr__(self, "sections", {})


BUILTIN_CONFIGS = {
    "pretrain": "titan_pt.config.schema.job_config:JobConfig",
    "sft": "titan_pt.config.schema.sft:SftConfig",
    "grpo": "titan_pt.config.schema.grpo:GrpoConfig",
}
"""Configs of the built-in kinds of training, which can be imported without torch."""

_TRAINERS: Registry[TrainerSpec[Any]] = Registry(
    "trainer spec {}",
    {
        "pretrain": "titan_pt.trainers.pretrain:SPEC",
        "sft": "titan_pt.trainers.sft.spec:SPEC",
        "grpo": "titan_pt.trainers.grpo.spec:SPEC",
    },
)


def register_trainer_spec(spec: TrainerSpec[Config]) -> TrainerSpec[Config]:
    """Make a kind of training known by `[job] trainer`. A second registration of a name is an error."""
    _TRAINERS.register(spec.name, spec)
    return spec


def get_trainer_spec(name: str) -> TrainerSpec[Any]:
    """The spec of `[job] trainer`.

    Raises:
        ConfigError: the name is unknown; lists the known ones.
    """
    return _TRAINERS.find(name, "job.trainer")


def trainer_names() -> set[str]:
    """Names of all kinds of training: the built-in ones and those registered so far."""
    return set(_TRAINERS)


def trainer_config(name: str) -> type[JobConfig]:
    """The config class of `[job] trainer`; a built-in one is found without importing torch.

    Raises:
        ConfigError: the name is unknown; lists the known ones.
    """
    if name in BUILTIN_CONFIGS:
        config_type: type[JobConfig] = import_attribute(BUILTIN_CONFIGS[name])
        return config_type
    return get_trainer_spec(name).config_type
