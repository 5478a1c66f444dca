"""A kind of training as a dataclass of functions, and the registry of kinds."""

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from titan_pt.config.errors import ConfigError, nearest, one_of
from titan_pt.config.job_config import Section

if TYPE_CHECKING:
    import torch
    from torch import nn

    from titan_pt.components.lr_scheduler import Schedule
    from titan_pt.components.tokenizer import Tokenizer
    from titan_pt.components.validate import Validator
    from titan_pt.config.budget import Budget
    from titan_pt.config.job_config import JobConfig
    from titan_pt.data.loader import DataLoader
    from titan_pt.distributed.world import World
    from titan_pt.protocols.step import Step, StepParts


@dataclass(frozen=True, kw_only=True)
class TrainerSpec:
    """What `train.py` calls, top to bottom. `dataclasses.replace` of a built-in spec makes a new kind of training."""

    name: str
    build_tokenizer: "Callable[[JobConfig], Tokenizer]"
    build_model: "Callable[[JobConfig, Tokenizer], nn.Module]"
    """On the meta device."""
    parallelize: "Callable[[nn.Module, JobConfig, World], nn.Module]"
    build_optimizers: "Callable[[nn.Module, JobConfig], torch.optim.Optimizer]"
    build_lr_schedulers: "Callable[[JobConfig, int], Schedule]"
    """(config, steps of the run) -> learning rate of a step."""
    build_dataloader: "Callable[[JobConfig, Tokenizer, World, Budget], DataLoader]"
    build_step: "Callable[[StepParts], Step]"
    """What one optimizer step does."""
    build_validator: "Callable[[StepParts], Validator | None]"
    sections: Mapping[str, type[Section]] = field(default_factory=dict)
    """TOML tables of this kind of training, by name."""


@dataclass(frozen=True)
class BuiltinTrainer:
    """Where a built-in spec lives, and its sections: known without importing torch."""

    module: str
    sections: Mapping[str, type[Section]]


BUILTIN_TRAINERS: dict[str, BuiltinTrainer] = {"pretrain": BuiltinTrainer("titan_pt.trainers.pretrain", {})}
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


def trainer_sections(name: str) -> Mapping[str, type[Section]]:
    """The TOML tables of `[job] trainer`; a ConfigError where the name is unknown."""
    if name in BUILTIN_TRAINERS:
        return BUILTIN_TRAINERS[name].sections
    return get_trainer_spec(name).sections


def trainers_with_section(section: str) -> list[str]:
    """The kinds of training that bring this TOML table."""
    return sorted(name for name in trainer_names() if section in trainer_sections(name))


__all__ = [
    "TrainerSpec",
    "get_trainer_spec",
    "register_trainer_spec",
    "trainer_names",
    "trainer_sections",
    "trainers_with_section",
]
