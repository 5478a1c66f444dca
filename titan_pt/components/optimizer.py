"""AdamW with weight decay on matrices only, its moments in 32 or 8 bits."""

from collections.abc import Iterator

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from titan_pt.config.schema.job_config import Compile, JobConfig
from titan_pt.distributed.init import parameter_name
from titan_pt.protocols.registry import import_attribute


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
    if options.name == "AdamW8bit":
        from titan_pt.distributed.compile import check_compiler

        sharded_adamw_8bit = import_attribute("titan_pt.optimizers.adamw8bit:ShardedAdamW8bit")
        device = next(model.parameters()).device
        check_compiler(Compile(), device, 'optimizer.name = "AdamW8bit"')
        optimizer: torch.optim.Optimizer = sharded_adamw_8bit(
            groups, lr=options.lr, betas=(options.beta1, options.beta2), eps=options.eps
        )
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
    """Split parameters into (decayed, not decayed) by name: matrices that are no embeddings, and the rest."""
    embeddings = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters(recurse=False)
    }
    decayed: dict[str, nn.Parameter] = {}
    others: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        side = decayed if parameter.ndim >= 2 and id(parameter) not in embeddings else others
        side[parameter_name(name)] = parameter
    ids = [id(parameter) for parameter in (*decayed.values(), *others.values())]
    assert sorted(ids) == sorted(id(parameter) for parameter in model.parameters()), "each parameter in one group"
    return decayed, others


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Tensors of the optimizer's state by "parameter.key"; creates the state where no step was taken yet."""
    if not optimizer.state:
        _initialize(optimizer)
    return {
        f"{parameter_name(name)}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in _state_tensors(optimizer, parameter)
    }


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all parameters."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):  # compiled in: another object would be compiled again
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def reset(optimizer: torch.optim.Optimizer) -> None:
    """Set the moments and step counts of all parameters to zero, in place."""
    for parameter in optimizer.state:
        for _, value in _state_tensors(optimizer, parameter):
            value.zero_()


def _state_tensors(optimizer: torch.optim.Optimizer, parameter: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (key, plain tensor) for the state of one parameter."""
    values = {key: value for key, value in optimizer.state[parameter].items() if isinstance(value, torch.Tensor)}
    if isinstance(optimizer, torch.optim.AdamW):
        yield from values.items()
        return
    state_tensors = import_attribute("titan_pt.optimizers.adamw8bit:state_tensors")
    for key, value in values.items():
        yield from state_tensors(parameter, key, value)


@torch.no_grad()
def _initialize(optimizer: torch.optim.Optimizer) -> None:
    """Create the optimizer's state by a step with zero gradients, then set its step count back."""
    rate = float(optimizer.param_groups[0]["lr"])
    set_rate(optimizer, 0.0)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    set_rate(optimizer, rate)
    reset(optimizer)
    optimizer.zero_grad(set_to_none=True)


def guarded_update(
    model: nn.Module, optimizer: torch.optim.Optimizer, lr: float, max_norm: float, loss: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Clip gradients and update, unless loss or gradient is not finite; returns (grad_norm, skipped) on the device.

    Both are the same on all ranks, so all ranks skip together. The fused optimizer reads the flag on the device and
    leaves weights, moments and its step count alone; multiplying by zero would not do, 0 * NaN is NaN.
    """
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    grad_norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    # With CPU offload the gradients and the optimizer are on the CPU, and the loss is waited for.
    finite = torch.isfinite(grad_norm) & torch.isfinite(loss.to(grad_norm.device))
    skipped = 1.0 - finite.to(torch.float32)
    set_rate(optimizer, lr)
    if optimizer.defaults.get("fused"):
        optimizer.grad_scale, optimizer.found_inf = None, skipped  # type: ignore[attr-defined]
        optimizer.step()
    elif bool(finite):  # reads the device: the price of the other implementations
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return grad_norm, skipped
