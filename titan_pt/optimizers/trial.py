"""A step of an optimizer on small stand-ins of its parameters, to learn before training what its state is."""

import copy
import inspect
import random
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from titan_pt.config.errors import ConfigError
from titan_pt.optimizers.encoding import UnsavableState, equal

# Most values of a stand-in in each dimension.
_SIDE = 4


def check_callable(optimizer: Optimizer) -> None:
    """Check that a step needs no closure.

    Raises:
        ConfigError: it does, as that of L-BFGS: a step here has one gradient, which is clipped and guarded.
    """
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        kind = type(optimizer)
        raise ConfigError(
            f"optimizer {kind.__module__}.{kind.__qualname__}: its step needs a closure that computes the loss again, "
            "which no training step here gives; use an optimizer whose step() needs none"
        )


def own_state_functions(optimizer: Optimizer) -> bool:
    """Whether the optimizer's class defines how its state is saved and restored."""
    kind = type(optimizer)
    return kind.state_dict is not Optimizer.state_dict and kind.load_state_dict is not Optimizer.load_state_dict


def try_a_step(optimizer: Optimizer, encode: Callable[[Optimizer], Any]) -> str:
    """Why the state that a step makes cannot be saved; empty where it can, or where stand-ins do not do for a step.

    Args:
        encode: raises an UnsavableState that says what cannot be saved.
    """
    try:
        twin, attributes = _twin(optimizer)
        with torch.random.fork_rng(devices=_cuda_devices(optimizer)):
            state = random.getstate()
            twin.step()
            random.setstate(state)
    except Exception:  # the optimizer needs more than stand-ins; its state is looked at after the first step
        return ""
    try:
        encode(twin)
    except UnsavableState as error:
        return str(error)
    except Exception:  # its own functions need more than stand-ins too
        return ""
    if own_state_functions(optimizer):
        return ""
    for name, before in attributes.items():
        if isinstance(before, Optimizer):
            return f"its attribute {name} is an optimizer too; define state_dict and load_state_dict that hold both"
        if _is_state(vars(twin).get(name)) and not equal(vars(twin).get(name), before):
            return (
                f"its step changes the attribute {name}, which is in no checkpoint; keep it in state or in a parameter "
                "group, or define state_dict and load_state_dict"
            )
    return ""


def _twin(optimizer: Optimizer) -> tuple[Optimizer, dict[str, Any]]:
    """The optimizer with stand-ins for its parameters, and its own attributes before any step."""
    memo: dict[int, Any] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            shape = [min(size, _SIDE) for size in parameter.shape]
            stand_in = torch.nn.Parameter(torch.full(shape, 0.5, dtype=parameter.dtype, device=parameter.device))
            stand_in.grad = torch.full_like(stand_in, 0.25)
            memo[id(parameter)] = stand_in
            for value in getattr(optimizer, "state", {}).get(parameter, {}).values():
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    memo[id(value)] = torch.full_like(stand_in, 0.0, dtype=value.dtype, requires_grad=False)
    twin: Optimizer = type(optimizer).__new__(type(optimizer))
    vars(twin).update(copy.deepcopy(vars(optimizer), memo))
    known = vars(torch.optim.SGD([torch.zeros(1)], lr=0.0)).keys()
    return twin, {name: copy.deepcopy(value) for name, value in vars(twin).items() if name not in known}


def _is_state(value: Any) -> bool:
    """Whether a value of an attribute looks like state and not like a tool."""
    if isinstance(value, dict):
        return all(map(_is_state, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_state, value))
    return value is None or isinstance(value, bool | int | float | str | torch.Tensor)


def _cuda_devices(optimizer: Optimizer) -> list[torch.device]:
    devices = {parameter.device for group in optimizer.param_groups for parameter in group["params"]}
    return [device for device in devices if device.type == "cuda"]
