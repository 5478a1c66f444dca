"""`experimental.custom_import = "optimizer_plugins"`: kinds of training whose optimizers are a plugin's own.

`job.trainer = "opt_<name>"` is pretraining with the optimizer of that name; `plugin.lr` is the rate of its matrices.
"""

import collections
import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from titan_pt.components.optimizer import split_parameters
from titan_pt.config.schema.job_config import Section
from titan_pt.protocols.trainer_spec import register_trainer_spec
from titan_pt.trainers import pretrain


class Plugin(Section):
    lr: float = 0.02
    """Learning rate of the matrices."""


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal for matrices (Newton-Schulz on the whole one), Adam for all else, in one optimizer."""

    def __init__(self, groups: Any, lr: float) -> None:
        super().__init__(groups, {"lr": lr, "momentum": 0.95, "muon": False, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                state["steps"] = state.get("steps", 0) + 1  # a plain number
                if group["muon"]:
                    momentum = state.setdefault("momentum", torch.zeros_like(p))
                    momentum.lerp_(p.grad, 1 - group["momentum"])
                    whole = momentum.full_tensor() if isinstance(momentum, DTensor) else momentum
                    update = orthogonal(whole)
                    if isinstance(p, DTensor):
                        update = torch.distributed.tensor.distribute_tensor(update, p.device_mesh, p.placements)
                else:
                    first = state.setdefault("first", torch.zeros_like(p))
                    second = state.setdefault("second", torch.zeros_like(p))
                    first.lerp_(p.grad, 0.1)
                    second.lerp_(p.grad.square(), 0.05)
                    n = state["steps"]
                    update = (first / (1 - 0.9**n)) / ((second / (1 - 0.95**n)).sqrt() + 1e-8)
                p.add_(update, alpha=-group["lr"])


def orthogonal(x: torch.Tensor) -> torch.Tensor:
    """Quintic Newton-Schulz iteration, as Muon's."""
    x = x / (x.norm() + 1e-7)
    flat = x.T if x.shape[0] > x.shape[1] else x
    for _ in range(5):
        gram = flat @ flat.T
        flat = 3.4445 * flat + (-4.7750 * gram + 2.0315 * gram @ gram) @ flat
    return flat.T if x.shape[0] > x.shape[1] else flat


class Odd(torch.optim.Optimizer):
    """State of every kind: types, dimensions, nesting, one tensor in two places, entries of groups, no parameter's."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr, "k": 0, "mean": torch.zeros(()), "betas": (0.9, 0.99)})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        shared = self.state["all"]
        shared["calls"] = shared.get("calls", 0) + 1
        shared.setdefault("names", ["a", ("b", None, True)])
        for group in self.param_groups:
            group["k"] += 1
            group["mean"] = 0.5 * group["mean"] + 1.0
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["half"] = torch.zeros_like(p, dtype=torch.bfloat16)
                    state["nested"] = {
                        "list": [torch.tensor(3, dtype=torch.int16), 1.0 / 3.0],
                        7: {"inf": float("inf")},
                    }
                    state["again"] = state["half"]
                    local = p.to_local() if isinstance(p, DTensor) else p
                    state["part"] = torch.zeros_like(local, dtype=torch.float64)
                state["nested"]["list"][0] += 1
                state["nested"]["list"][1] *= 1.1
                state["half"].mul_(0.9).add_(p.grad.to(torch.bfloat16))
                grad = p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad
                state["part"] += grad
                scale = group["lr"] * float(group["mean"]) * state["nested"]["list"][1] / shared["calls"]
                p.add_(state["again"].to(p.dtype), alpha=-scale)
                part = p.to_local() if isinstance(p, DTensor) else p
                part.add_(state["part"].to(part.dtype), alpha=-0.1 * scale)


class Own(torch.optim.SGD):
    """A count outside of `state`, saved by functions of its own."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr=lr, momentum=0.9)
        self.count = 0

    def step(self, closure: Any = None) -> Any:
        self.count += 1
        for group in self.param_groups:
            group["lr"] = group["lr"] / (1 + 0.1 * self.count)
        return super().step(closure)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.count = state_dict["count"]
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "count"})


class Hidden(Own):
    """The count is nowhere in the state."""

    state_dict = torch.optim.Optimizer.state_dict  # type: ignore[assignment]
    load_state_dict = torch.optim.Optimizer.load_state_dict  # type: ignore[assignment]


class Queue(torch.optim.SGD):
    """Keeps a kind of object that no checkpoint holds."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p].setdefault("norms", collections.deque(maxlen=5)).append(float(p.grad.norm()))
        return super().step(closure)


class Sparse(torch.optim.SGD):
    """Weights of its own, made at the second step."""

    slow: Any = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step()
        for group in self.param_groups:
            group["k"] = group.get("k", 0) + 1
            if group["k"] % 2 == 0:
                self.slow = self.slow or [p.clone() for p in group["params"]]
                for p, slow in zip(group["params"], self.slow, strict=True):
                    p.copy_(slow.lerp_(p, 0.5))


class FromIterator(torch.optim.SGD):
    """Factors that only an iterator knows."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr=lr)
        self.factors = (1 / n for n in itertools.count(1))

    def step(self, closure: Any = None) -> Any:
        factor = next(self.factors)
        for group in self.param_groups:
            for p in group["params"]:
                p.grad.mul_(factor)
        return super().step(closure)


class Wrapped(torch.optim.SGD):
    """Others in a container do its steps."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr=lr)
        self.parts = {"all": [torch.optim.Adam(self.param_groups[0]["params"], lr=lr)]}

    def step(self, closure: Any = None) -> Any:
        return self.parts["all"][0].step()


class Picky(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        raise ValueError("of seven alone")


def copies(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(p.detach().clone()) for p in model.parameters()]


def muon(model: torch.nn.Module, config: Any) -> Muon:
    decayed, others = split_parameters(model)
    groups = [
        {"params": list(decayed.values()), "lr": config.plugin.lr, "muon": True, "name": "matrices"},
        {"params": list(others.values()), "name": "others"},
    ]
    return Muon(groups, config.optimizer.lr)


def of(kind: Any, **options: Any) -> Callable[[torch.nn.Module, Any], Any]:
    return lambda model, config: kind(model.parameters(), lr=config.optimizer.lr, **options)


def part(model: torch.nn.Module, config: Any) -> torch.optim.Optimizer:
    """Of the matrices alone: the other parameters have gradients too, which nobody uses."""
    return torch.optim.Muon(split_parameters(model)[0].values(), lr=config.optimizer.lr)


OPTIMIZERS: dict[str, Callable[[torch.nn.Module, Any], torch.optim.Optimizer]] = {
    "muon": muon,
    "part": part,
    "sgd": of(torch.optim.SGD, momentum=0.9),
    "adagrad": of(torch.optim.Adagrad, initial_accumulator_value=0.1),
    "nadam": of(torch.optim.NAdam),
    "odd": of(Odd),
    "own": of(Own),
    "lbfgs": of(torch.optim.LBFGS),
    "hidden": of(Hidden),
    "queue": of(Queue),
    "sparse": of(Sparse),
    "iterator": of(FromIterator),
    "wrapped": of(Wrapped),
    "picky": of(Picky),
    "copies": lambda model, config: torch.optim.SGD(copies(model), lr=0.1),
    "adamw_copies": lambda model, config: torch.optim.AdamW(copies(model), lr=0.1),
    "nothing": lambda model, config: None,  # type: ignore[dict-item, return-value]
    "one_argument": lambda model: torch.optim.SGD(model.parameters(), lr=0.1),  # type: ignore[dict-item, misc]
    "negative": lambda model, config: torch.optim.SGD(model.parameters(), lr=-1),
}

for _name, _build in OPTIMIZERS.items():
    register_trainer_spec(
        dataclasses.replace(pretrain.SPEC, name=f"opt_{_name}", build_optimizers=_build, sections={"plugin": Plugin})
    )
