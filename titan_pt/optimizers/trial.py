"""Steps of an optimizer on small stand-ins of its parameters, to learn before training that it resumes to the bit."""

import copy
import inspect
import json
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from titan_pt.config.errors import ConfigError
from titan_pt.optimizers.attributes import attributes, fingerprints, wrapped_optimizer
from titan_pt.optimizers.encoding import UnsavableState, same
from titan_pt.protocols.plugins import reason

# Most values of a stand-in in each dimension; the second is for what the first is too small for.
_SIDES = (4, 64)
# Steps before the state is saved, and after it is loaded.
_BEFORE, _AFTER = 16, 4
_NEEDS_RANKS = ("DTensor", "device_mesh", "to_local", "full_tensor", "placements", "process group", "ProcessGroup")
IN_NO_CHECKPOINT = (
    "which is in no checkpoint; keep it in state or in a parameter group, or define state_dict and load_state_dict"
)


class Held(Protocol):
    """The state of an optimizer as JSON and tensors by name, and back."""

    def encode(self) -> tuple[Any, dict[str, torch.Tensor]]: ...

    def load(self, document: Any, tensors: Mapping[str, torch.Tensor]) -> None: ...


Hold = Callable[[Optimizer, Mapping[str, torch.Tensor]], Held]


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


def try_steps(optimizer: Optimizer, parameters: Mapping[str, torch.Tensor], hold: Hold) -> str:
    """Why it is not known that a resumed run goes on to the bit; empty where it is, or where a step needs DTensors."""
    if not own_state_functions(optimizer) and (name := wrapped_optimizer(optimizer)):
        return (
            f"its attribute {name} is or holds an optimizer too, whose state is in no checkpoint; define state_dict "
            "and load_state_dict that hold both"
        )
    error: Exception | None = None
    for side in _SIDES:
        state = random.getstate()
        try:
            with torch.random.fork_rng(devices=_cuda_devices(optimizer)):
                return _try_steps(optimizer, parameters, hold, side)
        except UnsavableState as unsavable:
            return str(unsavable)
        except Exception as raised:
            error = raised
        finally:
            random.setstate(state)
    assert error is not None
    told = reason(error)
    if any(word in told for word in _NEEDS_RANKS):
        return ""  # its attributes are compared after the first step
    return (
        f"steps with small stand-ins for its parameters, which show whether its state can be saved, fail: {told}; let "
        "step() take parameters of any size"
    )


def _try_steps(optimizer: Optimizer, parameters: Mapping[str, torch.Tensor], hold: Hold, side: int) -> str:
    (one, ones), (other, others) = [_twin(optimizer, parameters, side) for _ in range(2)]
    held, loaded = hold(one, ones), hold(other, others)
    names = {id(tensor): name for name, tensor in ones.items()}
    before, rates = fingerprints(one, names), [copy.deepcopy(group.get("lr")) for group in one.param_groups]
    for number in range(_BEFORE):
        _step(one, rates, number)
    if not own_state_functions(optimizer):
        after = fingerprints(one, names)
        for name in {**before, **after}:
            if before.get(name) != after.get(name):
                return f"its step changes the attribute {name}, {IN_NO_CHECKPOINT}"
    document, tensors = held.encode()
    with torch.no_grad():
        for name, tensor in others.items():
            tensor.copy_(ones[name])
    for twin in (one, other):  # the rates of a resumed run follow from its schedule
        _set_rates(twin, rates, _BEFORE)
    loaded.load(json.loads(json.dumps(document)), {name: tensor.clone() for name, tensor in tensors.items()})
    for twin in (one, other):
        torch.manual_seed(0)
        random.seed(0)
        for number in range(_BEFORE, _BEFORE + _AFTER):
            _step(twin, rates, number)
    (document, tensors), (resumed, there) = held.encode(), loaded.encode()
    if not same(ones, others) or document != resumed or not same(tensors, there):
        return (
            "after its state was saved and loaded, its steps are not those of before; keep all that they depend on in "
            "state or in a parameter group, or let state_dict and load_state_dict hold it"
        )
    return ""


def _step(twin: Optimizer, rates: list[Any], number: int) -> None:
    _set_rates(twin, rates, number)
    generator = torch.Generator().manual_seed(number)
    for group in twin.param_groups:
        for tensor in group["params"]:
            grad = torch.randn(tensor.shape, generator=generator, dtype=torch.float32)
            tensor.grad = grad.to(tensor) if tensor.requires_grad else None
    twin.step()


def _set_rates(twin: Optimizer, rates: list[Any], number: int) -> None:
    for group, rate in zip(twin.param_groups, rates, strict=True):
        now = None if rate is None else rate * (1 - number / (2 * (_BEFORE + _AFTER)))
        if isinstance(group.get("lr"), torch.Tensor):
            group["lr"].fill_(now)
        elif now is not None:
            group["lr"] = now


def _twin(
    optimizer: Optimizer, parameters: Mapping[str, torch.Tensor], side: int
) -> tuple[Optimizer, dict[str, torch.Tensor]]:
    """The optimizer with small stand-ins for its parameters and for tensors of their shapes; (it, the stand-ins)."""
    memo: dict[int, Any] = {}

    def small(tensor: torch.Tensor) -> torch.Tensor:
        shape = [min(size, side) for size in tensor.shape]
        return torch.full(shape, 0.5 if tensor.is_floating_point() else 0, dtype=tensor.dtype, device=tensor.device)

    stand_ins: dict[str, torch.Tensor]
    stand_ins = {name: nn.Parameter(small(tensor), tensor.requires_grad) for name, tensor in parameters.items()}
    memo |= {id(tensor): stand_ins[name] for name, tensor in parameters.items()}
    shapes = {tensor.shape for tensor in parameters.values()}
    held = attributes(optimizer)
    for tensor in _tensors(list(held.values())):
        if id(tensor) not in memo and (isinstance(tensor, DTensor) or (tensor.ndim and tensor.shape in shapes)):
            memo[id(tensor)] = small(tensor)
    twin: Optimizer = type(optimizer).__new__(type(optimizer))
    memo[id(optimizer)] = twin
    for name, value in held.items():
        earlier = {**memo}
        try:
            copied = copy.deepcopy(value, memo)
        except Exception:  # a tool, such as a process group: both twins use it
            if name in ("state", "param_groups"):
                raise
            copied, alive = value, memo.get(id(memo))  # what deepcopy keeps alive for its ids
            memo.clear()
            memo |= earlier | {id(memo): alive or []}
        object.__setattr__(twin, name, copied)
    return twin, stand_ins


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors([*value, *value.values()])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _cuda_devices(optimizer: Optimizer) -> list[torch.device]:
    devices = {parameter.device for group in optimizer.param_groups for parameter in group["params"]}
    return [device for device in devices if device.type == "cuda"]
