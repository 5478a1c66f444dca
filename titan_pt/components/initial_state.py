"""The state of an optimizer that took no step yet, for a checkpoint to be read into."""

from collections.abc import Iterable

import torch


@torch.no_grad()
def initialize(optimizer: torch.optim.Optimizer) -> None:
    """Create the optimizer's state by a step with zero gradients at a rate of zero; its step counts are then 1."""
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    _set(optimizer, [0.0] * len(rates))
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    _set(optimizer, rates)
    optimizer.zero_grad(set_to_none=True)


def _set(optimizer: torch.optim.Optimizer, rates: Iterable[float]) -> None:
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
