"""Nested values of an optimizer's state as JSON and named tensors, and back, to the bit."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, Replicate, Shard

from titan_pt.distributed.init import local_part

Json = Any


class UnsavableState(Exception):
    """A value that a checkpoint cannot hold; the text says where it stands and what it is."""


class StateEncoder:
    """Turns nested values into JSON and named tensors; a tensor that stands in two places is saved once."""

    def __init__(self, parameters: Mapping[str, torch.Tensor]) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self.entries: dict[str, Json] = {}
        self._names = {id(parameter): name for name, parameter in parameters.items()}
        self._seen: dict[int, str] = {}

    def encode(self, value: Any, path: tuple[str, ...], parameter: torch.Tensor | None) -> Json:
        """JSON of a value.

        Args:
            parameter: the parameter whose state it is, if any.

        Raises:
            UnsavableState: it holds something else than tensors, numbers, texts, lists and dictionaries.
        """
        if value is None or type(value) in (bool, int, str):
            return value
        if type(value) is float:
            return {"float": value.hex()}
        if type(value) is complex:
            return {"complex": [value.real.hex(), value.imag.hex()]}
        if type(value) in (list, tuple, torch.Size):
            parts = [self.encode(item, (*path, str(i)), parameter) for i, item in enumerate(value)]
            return {"list" if type(value) is list else "tuple": parts}
        if isinstance(value, dict):
            pairs = [
                [self.encode(key, (*path, "key"), None), self.encode(item, (*path, str(key)), parameter)]
                for key, item in value.items()
            ]
            return {"dict": pairs}
        if isinstance(value, torch.Tensor):
            return self._tensor(value, path, parameter)
        raise UnsavableState(
            f"{'.'.join(path)} of its state is {_article(type(value).__name__)}, which a checkpoint cannot hold; keep "
            "tensors, numbers, texts, lists and dicts there, or define state_dict and load_state_dict"
        )

    def _tensor(self, value: torch.Tensor, path: tuple[str, ...], parameter: torch.Tensor | None) -> Json:
        if id(value) in self._names:
            return {"parameter": self._names[id(value)]}
        if id(value) in self._seen:
            return {"tensor": self._seen[id(value)]}
        name = ".".join(path)
        while name in self.tensors:  # the keys 1 and "1"
            name += "'"
        if type(value) not in (torch.Tensor, nn.Parameter, DTensor) or value.layout is not torch.strided:
            what = type(value).__name__ if value.layout is torch.strided else f"tensor of layout {value.layout}"
            raise UnsavableState(f"{name} of its state is {_article(what)}, which a checkpoint cannot hold")
        whole, layout = self._layout(value.detach(), name, parameter)
        self._seen[id(value)] = name
        self.tensors[name] = whole
        self.entries[name] = {
            "dtype": str(whole.dtype).removeprefix("torch."),
            "shape": list(whole.shape),
            "layout": layout,
            "parameter": self._names.get(id(parameter)),
            "device": "cpu" if parameter is not None and value.device != parameter.device else "parameter",
            "ranks": parameter.device_mesh.size() if isinstance(parameter, DTensor) else 1,
        }
        return {"tensor": name}

    def _layout(self, value: torch.Tensor, name: str, parameter: torch.Tensor | None) -> tuple[torch.Tensor, Json]:
        """(the tensor to save, how its parts lie on the ranks)."""
        if isinstance(value, DTensor):
            if isinstance(parameter, DTensor) and value.device_mesh != parameter.device_mesh:
                raise UnsavableState(f"{name} of its state lies on another device mesh than its parameter")
            if not all(type(place) in (Replicate, Shard) for place in value.placements):
                raise UnsavableState(f"{name} of its state is a DTensor of partial sums; redistribute it")
            if isinstance(parameter, DTensor) and _lies_alike(value, parameter):
                return value, "parameter"
            return value, [place.dim if isinstance(place, Shard) else None for place in value.placements]
        if parameter is None or not value.ndim:
            return value, "whole"
        if not isinstance(parameter, DTensor):
            return value, "parameter" if value.shape == parameter.shape else "whole"
        if value.shape == parameter.to_local().shape:
            return _joined(value, parameter), "local"
        return value, "whole"


def decode(content: Json, tensors: Mapping[str, torch.Tensor], parameters: Mapping[str, torch.Tensor]) -> Any:
    """The value that `StateEncoder.encode` gave the JSON of."""
    if not isinstance(content, dict):
        return content
    ((kind, inner),) = content.items()
    if kind == "float":
        return float.fromhex(inner)
    if kind == "complex":
        return complex(*map(float.fromhex, inner))
    if kind in ("tensor", "parameter"):
        return tensors[inner] if kind == "tensor" else parameters[inner]
    if kind == "dict":
        return {decode(key, tensors, parameters): decode(value, tensors, parameters) for key, value in inner}
    items = [decode(item, tensors, parameters) for item in inner]
    return tuple(items) if kind == "tuple" else items


def equal(one: Any, other: Any) -> bool:
    """Whether two values are equal to the bit, nested tensors included."""
    try:
        a, b = StateEncoder({}), StateEncoder({})
        return bool(a.encode(one, (), None) == b.encode(other, (), None)) and same(a.tensors, b.tensors)
    except UnsavableState:  # a function or a type: compared as Python does
        return bool(one == other)


def same(some: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor]) -> bool:
    """Whether each of some tensors has the numbers of the other one of its name."""
    pairs = ((value, others[name]) for name, value in some.items())
    return all(_is(one, other) or local_bytes(one) == local_bytes(other) for one, other in pairs)


def _is(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether both are the same memory, so that their numbers need not be read."""
    a, b = local_part(one), local_part(other)
    return a.data_ptr() == b.data_ptr() and (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())


def local_bytes(tensor: torch.Tensor) -> bytes:
    """The numbers of this rank's part."""
    return local_part(tensor).detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _joined(local: torch.Tensor, parameter: DTensor) -> DTensor:
    """The ranks' plain parts of a tensor that is sharded like a parameter."""
    shape, stride = parameter.shape, torch.empty(parameter.shape, device="meta").stride()
    return DTensor.from_local(
        local, parameter.device_mesh, parameter.placements, run_check=False, shape=shape, stride=stride
    )


def _lies_alike(value: DTensor, parameter: DTensor) -> bool:
    return value.shape == parameter.shape and value.placements == parameter.placements


def _article(name: str) -> str:
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
