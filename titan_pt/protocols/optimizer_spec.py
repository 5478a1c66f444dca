"""Optimizers of a user's own by their name in `[optimizer]`. Imported where one is named, and by its plugin."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from pydantic import create_model

from titan_pt.config.schema.section import Section
from titan_pt.config.schema.training import BUILTIN_OPTIMIZERS, Optimizer
from titan_pt.protocols.registry import Registry

if TYPE_CHECKING:
    import torch
    from torch import nn

BuildOptimizer = Callable[["nn.Module", Any], "torch.optim.Optimizer"]
"""(model, config) -> the optimizer of the model's own parameters.

Each parameter group may have a "name", and an "lr" of its own: its ratio to `optimizer.lr` is kept while the schedule
moves the rate. `titan_pt.components.optimizer.split_parameters` tells matrices from embeddings, norms and the rest.
"""


@dataclass(frozen=True)
class OptimizerSpec:
    """An optimizer that a plugin brings."""

    build: BuildOptimizer
    table: type[Optimizer]
    """[optimizer] with its keys."""


_OPTIMIZERS: Registry[OptimizerSpec] = Registry(
    "optimizer {}", {"Muon": "titan_pt.optimizers.muon_spec:SPEC"}, reserved=BUILTIN_OPTIMIZERS
)


def register_optimizer(name: str, build: BuildOptimizer, section: type[Section] | None = None) -> None:
    """Make an optimizer known by `[optimizer] name`.

    Args:
        build: called once, with the sharded model and the config; any `torch.optim.Optimizer` will do whose step needs
            no closure, and its state is saved and resumed to the bit.
        section: keys that it adds to [optimizer], or the common ones with other defaults. Its fields' docstrings are
            their help texts.

    Raises:
        ValueError: the name is taken.
    """
    bases: Any = (section, Optimizer) if section else Optimizer
    table = create_model("Optimizer", __base__=bases, __doc__=Optimizer.__doc__)
    _OPTIMIZERS.register(name, OptimizerSpec(build, cast(type[Optimizer], table)))


def get_optimizer_spec(name: str) -> OptimizerSpec:
    """The spec of `[optimizer] name`, where it is not a built-in one.

    Raises:
        ConfigError: the name is unknown.
    """
    return _OPTIMIZERS.find(name, "optimizer.name")


def optimizer_names() -> set[str]:
    """Names of all optimizers: the built-in ones and those registered so far."""
    return {*BUILTIN_OPTIMIZERS, *_OPTIMIZERS}
