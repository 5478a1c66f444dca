"""The optimizer "lion". Any `torch.optim.Optimizer` will do; its state is saved and resumed to the bit."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from titan_pt.config.schema.section import Section
from titan_pt.protocols.optimizer_spec import register_optimizer


class Lion(torch.optim.Optimizer):
    """Moves each weight by the learning rate, in the direction of the sign of a momentum."""

    def __init__(self, parameters: Any, lr: float, momentum: float, mix: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "mix": mix, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """One update. The weights are sharded tensors: what works on each number alone works on them."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                average = self.state[weight].setdefault("average", torch.zeros_like(weight))
                direction = torch.lerp(weight.grad, average, group["mix"]).sign()
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(direction, alpha=-group["lr"])
                average.lerp_(weight.grad, 1 - group["momentum"])


class LionKeys(Section):
    momentum: float = 0.99
    """How much of the average of gradients a step keeps."""
    mix: float = 0.9
    """How much of that average is in the direction of a step."""


def build(model: nn.Module, config: Any) -> Lion:
    """The optimizer of the model's parameters; a group may have an `lr` of its own, which the schedule scales."""
    options = config.optimizer
    return Lion(model.parameters(), options.lr, options.momentum, options.mix, options.weight_decay)


register_optimizer("lion", build, LionKeys)
