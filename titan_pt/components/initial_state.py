"""The state of an optimizer that took no step yet, for a checkpoint to be read into."""

import torch

from titan_pt.components.optimizer import set_group_rate, set_rate, zero_state


@torch.no_grad()
def initialize(optimizer: torch.optim.Optimizer) -> None:
    """Create the optimizer's state by a step with zero gradients, then set its step count back."""
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    set_rate(optimizer, 0.0)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        set_group_rate(group, rate)
    zero_state(optimizer)
    optimizer.zero_grad(set_to_none=True)
