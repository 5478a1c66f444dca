"""What an optimizer keeps in attributes, outside of its state and its parameter groups."""

import hashlib
import types
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from titan_pt.optimizers.encoding import local_bytes

# What a training step sets itself, and what is looked at elsewhere.
_NOT_THE_OPTIMIZERS = ("state", "param_groups", "defaults", "grad_scale", "found_inf")


def attributes(optimizer: Optimizer) -> dict[str, Any]:
    """All attributes of an instance by name, those in slots too."""
    slots: list[str] = []
    for kind in type(optimizer).__mro__:
        own = vars(kind).get("__slots__", ())
        slots += [own] if isinstance(own, str) else [*own]
    found = {name: getattr(optimizer, name) for name in slots if hasattr(optimizer, name) and name != "__dict__"}
    return {**vars(optimizer), **found}


def wrapped_optimizer(optimizer: Optimizer) -> str | None:
    """Name of an attribute that is or holds another optimizer."""
    held = attributes(optimizer).items()
    return next((name for name, value in held if name != "state" and any(_optimizers(value, set()))), None)


def fingerprints(optimizer: Optimizer, known: Mapping[int, str]) -> dict[str, str]:
    """A hash of what each attribute holds.

    Args:
        known: names of the model's tensors, which training changes, by their ids.
    """
    return {
        name: hashlib.sha256(repr(_described(value, known, {id(optimizer): "self"})).encode()).hexdigest()
        for name, value in attributes(optimizer).items()
        if name not in _NOT_THE_OPTIMIZERS
    }


def _optimizers(value: Any, seen: set[int]) -> Iterator[bool]:
    if isinstance(value, Optimizer):
        yield True
    elif id(value) not in seen and not isinstance(value, torch.Tensor | nn.Module | type):
        seen.add(id(value))
        parts = [*value, *value.values()] if isinstance(value, dict) else []
        if isinstance(value, list | tuple | set | frozenset):
            parts = list(value)
        elif not isinstance(value, dict) and hasattr(value, "__dict__") and not callable(value):
            parts = list(vars(value).values())
        for part in parts:
            yield from _optimizers(part, seen)


def _described(value: Any, known: Mapping[int, str], seen: dict[int, str]) -> Any:
    """Nested texts that differ where the values do; of tools, such as a process group, the type alone."""
    if isinstance(value, bool | int | float | complex | str | bytes) or value is None:
        return type(value).__name__, repr(value)
    if id(value) in known or id(value) in seen:
        return "again", known.get(id(value)) or seen[id(value)]
    seen[id(value)] = str(len(seen))

    def parts(items: Any) -> list[Any]:
        return [_described(item, known, seen) for item in items]

    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    try:
        if isinstance(value, torch.Tensor):
            return kind, str(value.dtype), tuple(value.shape), hashlib.sha256(local_bytes(value)).hexdigest()
        if isinstance(value, nn.Module):
            return kind, parts([*value.parameters(), *value.buffers()])
        if isinstance(value, torch.Generator):
            return kind, bytes(value.get_state().tolist())
        if isinstance(value, types.FunctionType):
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            return value.__qualname__, [] if value.__module__.startswith("torch") else parts([*cells, vars(value)])
        if isinstance(value, set | frozenset):
            return kind, sorted(map(repr, parts(value)))
        if isinstance(value, type | types.ModuleType | Optimizer) or kind.startswith("torch"):
            return kind, repr(value) if isinstance(value, torch.dtype | type) else ""
        if isinstance(value, list | tuple | dict):
            return kind, parts([[*value.items()]] if isinstance(value, dict) else value)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reduced = value.__reduce_ex__(4)
        return kind, reduced if isinstance(reduced, str) else parts(_listed(part) for part in reduced[1:])
    except Exception:
        return kind


def _listed(part: Any) -> Any:
    """The items of an iterator; anything else as it is."""
    return list(part) if isinstance(part, Iterator) and not isinstance(part, torch.Tensor) else part
