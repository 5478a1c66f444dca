"""State of any torch.optim.Optimizer in checkpoints: tensors as tensors, everything else as JSON, restored to the bit.

torch's own `load_state_dict` casts state to the type of the parameter, which changes codes, counts and moments of
another precision; here each tensor comes back with its type, shape and layout, on any number of ranks.
"""

import copy
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.optim import Optimizer

from titan_pt.config.errors import ConfigError
from titan_pt.distributed.init import parameter_name
from titan_pt.distributed.world import World
from titan_pt.optimizers.encoding import Json, StateEncoder, UnsavableState, decode, equal, local_bytes, same
from titan_pt.optimizers.trial import check_callable, own_state_functions, try_a_step
from titan_pt.protocols.context import OptimizerState

_WAY_OUT = 'leave its state out once with checkpoint.exclude_from_loading = ["optimizer"]'
_NOT_RESTORED = "its load_state_dict does not restore to the bit what its state_dict gave"
# Entries of a parameter group that follow from the config and the schedule.
_RATES = ("lr", "lr_ratio")


class AnyOptimizerState:
    """The `OptimizerState` of an optimizer that a plugin built.

    An optimizer that defines `state_dict` and `load_state_dict` is saved and restored by these. Any other one by its
    `state`, and by those entries of its parameter groups that it changed: the others follow from the config.

    Args:
        earlier: how earlier releases saved this optimizer, where they did so whole.

    Raises:
        ConfigError: its step needs a closure.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, world: World, earlier: OptimizerState | None) -> None:
        check_callable(optimizer)
        self._earlier = earlier
        self._optimizer, self._world = optimizer, world
        self._kind = f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"
        self._parameters = {parameter_name(name): tensor for name, tensor in model.named_parameters()}
        self._own = own_state_functions(optimizer)
        self._start = [_entries(group) for group in optimizer.param_groups]
        self.resets = not optimizer.state and not self._own

    def check(self) -> None:
        """Try a step on stand-ins for the parameters.

        Raises:
            ConfigError: its state cannot be saved; on all ranks.
        """

        def trial() -> None:
            if problem := try_a_step(self._optimizer, self._try_to_save):
                raise ConfigError(f"optimizer {self._kind}: {problem}")

        self._world.together(trial)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Tensors by name; sharded ones as DTensors."""
        return self._encode()[1]

    def document(self) -> Json:
        """Everything else as JSON. A collective: what is not sharded must be equal on all ranks.

        Raises:
            ConfigError: it is not, or there is something that cannot be saved.
        """
        document, tensors = self._encode()
        digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode())
        for name, tensor in tensors.items():
            if not isinstance(tensor, DTensor):
                digest.update(name.encode() + local_bytes(tensor))
        if len(set(self._world.gather(digest.hexdigest()))) > 1:
            raise ConfigError(
                f"optimizer {self._kind}: its state differs between ranks and is not sharded like its parameter, so "
                "that a checkpoint would keep that of rank 0 alone; keep DTensors, or values that are equal on all"
            )
        return document

    def targets(self, document: Json, folder: Path) -> dict[str, torch.Tensor]:
        """Empty tensors, sharded as they will be used, to load a checkpoint into.

        Raises:
            ConfigError: the checkpoint is of another optimizer, or its tensors have no place on these ranks.
        """
        if document is None and self._earlier:
            return self._earlier.targets(None, folder)
        if document is None:
            raise ConfigError(f"{folder}: an earlier release did not save the state of {self._kind}; {_WAY_OUT}")
        if document["kind"] != self._kind:
            raise ConfigError(f"{folder}: its optimizer is {document['kind']}, not {self._kind}; {_WAY_OUT}")
        sizes = [len(group["params"]) for group in self._optimizer.param_groups]
        if document["groups"] != sizes:
            raise ConfigError(
                f"{folder}: the parameter groups of {self._kind} hold {document['groups']} tensors there and {sizes} "
                f"here; {_WAY_OUT}"
            )
        return {name: self._target(name, entry, folder) for name, entry in document["tensors"].items()}

    @torch.no_grad()
    def load(self, document: Json, tensors: Mapping[str, torch.Tensor]) -> None:
        """Set the state: `document`, with the tensors of `targets`, which are filled now."""
        if document is None:  # the targets are the state itself
            return
        local = {
            name: tensor.to_local() if entry["layout"] == "local" and isinstance(tensor, DTensor) else tensor
            for name, entry in document["tensors"].items()
            for tensor in (tensors[name],)
        }
        content = decode(document["content"], local, self._parameters)
        if self._own:
            self._load_own(content, document, tensors)
            return
        self._optimizer.state.clear()
        for key, value in content["state"].items():
            self._optimizer.state[key] = value
        for name, value in content["parameters"].items():
            self._optimizer.state[self._parameters[name]] = value
        for group, changed in zip(self._optimizer.param_groups, content["changed"], strict=True):
            group.update(changed)

    def reset(self) -> None:
        """Let the state be as before the first step; only where `resets`."""
        assert self.resets, "grpo refuses another optimizer"
        self._optimizer.state.clear()
        for group, start in zip(self._optimizer.param_groups, self._start, strict=True):
            group.update(copy.deepcopy(start))

    def _load_own(self, content: Any, document: Json, tensors: Mapping[str, torch.Tensor]) -> None:
        rates = [{key: group[key] for key in _RATES if key in group} for group in self._optimizer.param_groups]
        self._optimizer.load_state_dict(content["own"])
        again, held = self._encode()
        if again["content"] != document["content"] or not same(held, tensors):
            raise ConfigError(f"optimizer {self._kind}: {_NOT_RESTORED}; {_WAY_OUT}")
        # What the optimizer did not change follows from the config, which may be another one now.
        for group, there, here, rate in zip(
            self._optimizer.param_groups, content["start"], self._start, rates, strict=True
        ):
            group.update({key: here[key] for key in here if key in there and equal(group.get(key), there[key])})
            group.update(rate)

    def _encode(self) -> tuple[Json, dict[str, torch.Tensor]]:
        """(JSON, the tensors by the names that stand in it) of the whole state."""
        encoder = StateEncoder(self._parameters)
        try:
            content = self._own_content(encoder) if self._own else self._content(encoder)
        except UnsavableState as error:
            raise ConfigError(f"optimizer {self._kind}: {error}") from None
        sizes = [len(group["params"]) for group in self._optimizer.param_groups]
        return {"kind": self._kind, "groups": sizes, "tensors": encoder.entries, "content": content}, encoder.tensors

    def _own_content(self, encoder: StateEncoder) -> Json:
        return encoder.encode({"own": self._optimizer.state_dict(), "start": self._start}, (), None)

    def _content(self, encoder: StateEncoder) -> Json:
        groups = zip(self._optimizer.param_groups, self._start, strict=True)
        changed = [
            {key: value for key, value in _entries(group).items() if key not in old or not equal(value, old[key])}
            for group, old in groups
        ]
        held, others = state_by_name(self._optimizer, self._parameters)
        by_name = [[k, encoder.encode(v, (k,), self._parameters[k])] for k, v in held.items()]
        state, groups_changed = encoder.encode(others, ("state",), None), encoder.encode(changed, ("groups",), None)
        return {"dict": [["parameters", {"dict": by_name}], ["state", state], ["changed", groups_changed]]}

    def _try_to_save(self, twin: Optimizer) -> None:
        """Encode the state of a twin with small parameters; its own functions must restore what they gave."""
        encoder = StateEncoder({})
        if not self._own:
            for value in twin.state.values():
                encoder.encode(value, (), None)
            return
        content = encoder.encode(copy.deepcopy(twin.state_dict()), (), None)
        twin.load_state_dict(decode(content, encoder.tensors, {}))
        again = StateEncoder({})
        if again.encode(twin.state_dict(), (), None) != content or not same(encoder.tensors, again.tensors):
            raise UnsavableState(_NOT_RESTORED)

    def _target(self, name: str, entry: Mapping[str, Any], folder: Path) -> torch.Tensor:
        dtype, shape, layout = getattr(torch, entry["dtype"]), torch.Size(entry["shape"]), entry["layout"]
        like = self._parameters[entry["parameter"]] if entry["parameter"] else None
        if entry["ranks"] == 1 < self._world.size and (layout == "local" or (layout == "whole" and shape and like)):
            raise ConfigError(
                f"{folder}: {name} of {self._kind} was saved by one rank as a plain tensor; whether each of "
                f"{self._world.size} ranks holds all of it or a part is not known: resume on one rank, or {_WAY_OUT}"
            )
        if layout in ("parameter", "local"):
            assert like is not None
            return torch.empty_like(like.detach(), dtype=dtype)
        place = like if like is not None else next(iter(self._parameters.values()))
        if isinstance(layout, list) and isinstance(place, DTensor):
            mesh = place.device_mesh  # replicated over the dimensions that the saving run had not
            dims = ([None] * mesh.ndim + layout)[-mesh.ndim :]
            placements = [Replicate() if dim is None else Shard(dim) for dim in dims]
            return torch.distributed.tensor.empty(shape, dtype=dtype, device_mesh=mesh, placements=placements)
        return torch.empty(shape, dtype=dtype, device="cpu" if entry["device"] == "cpu" else place.device)


def state_by_name(
    optimizer: Optimizer, parameters: Mapping[str, torch.Tensor]
) -> tuple[dict[str, Any], dict[Any, Any]]:
    """(state of each parameter by its name, other entries of `state`).

    Raises:
        UnsavableState: there is state of a tensor that is no parameter of the model.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    held: dict[str, Any] = {}
    others: dict[Any, Any] = {}
    for key, value in optimizer.state.items():
        if not isinstance(key, torch.Tensor):
            others[key] = value
        elif value:  # reading a defaultdict made the empty ones
            if id(key) not in names:
                raise UnsavableState("it holds state of a tensor that is no parameter of the model")
            held[names[id(key)]] = value
    return held, others


def _entries(group: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a parameter group's entries that an optimizer may use as state."""
    return {key: copy.deepcopy(value) for key, value in group.items() if key not in ("params", *_RATES)}
