"""AdamW with weight decay on matrices only, its moments in 32 or 8 bits; rates, updates and state of any optimizer."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from titan_pt.config.schema.job_config import JobConfig
from titan_pt.distributed.init import parameter_name, whole
from titan_pt.distributed.world import World
from titan_pt.protocols.registry import import_attribute

if TYPE_CHECKING:
    from titan_pt.protocols.parts import OptimizerState

_EIGHT_BIT, _OWN = "titan_pt.optimizers.adamw8bit", "titan_pt.optimizers.building:build_own"


def build_optimizers(model: nn.Module, config: JobConfig) -> torch.optim.Optimizer:
    """Build the optimizer of `[optimizer]`.

    Raises:
        ConfigError: it has to be compiled, and there is no compiler.
    """
    options = config.optimizer
    decayed, others = split_parameters(model)
    groups = [
        {"params": list(decayed.values()), "weight_decay": options.weight_decay},
        {"params": list(others.values()), "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if options.name != "AdamW":
        place = f"{_EIGHT_BIT}:build_adamw_8bit" if options.name == "AdamW8bit" else _OWN
        optimizer: torch.optim.Optimizer = import_attribute(place)(model, groups, config)
        return optimizer
    return torch.optim.AdamW(
        groups,
        lr=options.lr,
        betas=(options.beta1, options.beta2),
        eps=options.eps,
        fused=options.implementation == "fused",
        foreach=options.implementation == "foreach",
    )


def split_parameters(model: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """Split what is trained into (decayed, not decayed) by name: matrices that are no embeddings, and the rest."""
    embeddings = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters(recurse=False)
    }
    decayed: dict[str, nn.Parameter] = {}
    others: dict[str, nn.Parameter] = {}
    trained = ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
    for name, parameter in trained:
        side = decayed if parameter.ndim >= 2 and id(parameter) not in embeddings else others
        side[parameter_name(name)] = parameter
    return decayed, others


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Tensors of the optimizer's state by "parameter.key"; creates the state where no step was taken yet."""
    if not optimizer.state:
        from titan_pt.components.initial_state import initialize

        initialize(optimizer)
        _zero_state(optimizer)
    return {
        f"{parameter_name(name)}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in _state_tensors(optimizer, parameter)
    }


def keep_own_rates(optimizer: torch.optim.Optimizer, main_rate: float) -> None:
    """Note each group's own rate as a ratio to the main one, before `set_rate` sets it by the schedule."""
    for group in optimizer.param_groups:
        own = group.get("lr")
        if isinstance(own, torch.Tensor):  # rounded to its type, in which 1.0 has to stay 1.0
            group["lr_ratio"] = float(own) / float(torch.tensor(main_rate, dtype=own.dtype))
        elif own is not None:
            group["lr_ratio"] = own / main_rate


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the main learning rate; each group's follows by its ratio to it."""
    for group in optimizer.param_groups:
        own, new = group.get("lr"), rate * group.get("lr_ratio", 1.0)
        if isinstance(own, torch.Tensor):  # compiled in: another object would be compiled again
            own.fill_(new)
        elif own is not None:
            group["lr"] = new


def group_rates(optimizer: torch.optim.Optimizer, rate: float) -> dict[str, float]:
    """Rates of the groups whose own is not the main one, as "lr/<name or number of the group>"."""
    named = {str(group.get("name", number)): group for number, group in enumerate(optimizer.param_groups, 1)}
    ratios = {name: group.get("lr_ratio", 1.0) for name, group in named.items()}
    return {f"lr/{name}": rate * ratio for name, ratio in ratios.items() if ratio != 1.0}


def describe_groups(optimizer: torch.optim.Optimizer) -> list[str]:
    """A line for each parameter group: name, size, peak rate and weight decay."""
    lines = []
    for number, group in enumerate(optimizer.param_groups, 1):
        rate, decay = group.get("lr"), group.get("weight_decay")
        size = sum(parameter.numel() for parameter in group["params"])
        told = {"lr": rate, "weight_decay": decay}
        values = ", ".join(f"{key} {float(value):.6g}" for key, value in told.items() if value is not None)
        name, count = group.get("name", number), len(group["params"])
        lines.append(f"group {name}: {count} tensors, {size:,} parameters, {values}")
    return lines


@dataclass(frozen=True)
class MomentState:
    """The `OptimizerState` of AdamW: moments and step counts, which begin at zero."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    resets = True

    def check(self) -> None:
        """Do nothing: it can be saved."""

    def tensors(self) -> dict[str, torch.Tensor]:
        return optimizer_tensors(self.model, self.optimizer)

    def document(self) -> None:
        """There is nothing else."""

    def targets(self, _document: Any, _folder: Path) -> dict[str, torch.Tensor]:
        return self.tensors()

    def load(self, document: Any, tensors: Mapping[str, torch.Tensor]) -> None:
        """Do nothing: the targets are the state itself."""

    def reset(self) -> None:
        _zero_state(self.optimizer)


def keep_state(model: nn.Module, optimizer: torch.optim.Optimizer, world: World) -> "OptimizerState":
    """What checkpoints hold of an optimizer that took no step yet.

    Raises:
        ConfigError: its step needs what no training step gives, or it has tensors that are not the model's.
    """
    moments, ids = MomentState(model, optimizer), set(map(id, model.parameters()))
    known = type(optimizer) is torch.optim.AdamW or type(optimizer).__module__ == _EIGHT_BIT
    if known and ids.issuperset(id(tensor) for group in optimizer.param_groups for tensor in group["params"]):
        return moments
    earlier = moments if isinstance(optimizer, torch.optim.AdamW) else None
    keep = import_attribute("titan_pt.optimizers.state:AnyOptimizerState")
    state: OptimizerState = keep(model, optimizer, world, earlier)
    return state


def _state_tensors(optimizer: torch.optim.Optimizer, parameter: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (key, plain tensor) for the state of one parameter."""
    values = {k: v for k, v in optimizer.state.get(parameter, {}).items() if isinstance(v, torch.Tensor)}
    if isinstance(optimizer, torch.optim.AdamW):
        yield from values.items()
        return
    state_tensors = import_attribute(f"{_EIGHT_BIT}:state_tensors")
    for key, value in values.items():
        yield from state_tensors(parameter, key, value)


def _zero_state(optimizer: torch.optim.Optimizer) -> None:
    """Set the moments and step counts of all parameters to zero, in place."""
    for parameter in optimizer.state:
        for _, value in _state_tensors(optimizer, parameter):
            value.zero_()


def guarded_update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    lr: float,
    max_norm: float,
    loss: torch.Tensor,
    spikes: Any = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Clip gradients and update, unless the step is bad; returns (grad_norm, skipped) on the device.

    `skipped` is 0, or 1 where loss or gradient is not finite, or the score of a spike. Both are the same on all ranks,
    so all ranks skip together. The fused optimizer reads the flag on the device and leaves weights, moments and its
    step count alone; multiplying by zero would not do, 0 * NaN is NaN.

    Args:
        spikes: the context's.
    """
    grad_norm = whole(torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm))
    # With CPU offload the gradients and the optimizer are on the CPU, and the loss is waited for.
    finite = torch.isfinite(grad_norm) & torch.isfinite(loss.to(grad_norm.device))
    skipped = 1.0 - finite.to(torch.float32)
    if spikes is not None:
        skipped = spikes.judge(loss.to(skipped.device), skipped)
    set_rate(optimizer, lr)
    if getattr(optimizer, "defaults", {}).get("fused") and getattr(optimizer, "_step_supports_amp_scaling", False):
        found_inf = (skipped > 0).to(torch.float32)
        optimizer.grad_scale, optimizer.found_inf = None, found_inf  # type: ignore[attr-defined]
        optimizer.step()
    elif bool(skipped == 0):  # reads the device: the price of the other implementations
        optimizer.step()
    model.zero_grad(set_to_none=True)  # of parameters that the optimizer does not have too: they would add up
    return grad_norm, skipped
