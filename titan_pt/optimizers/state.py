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
from titan_pt.optimizers.attributes import fingerprints
from titan_pt.optimizers.encoding import Json, StateEncoder, UnsavableState, decode, equal, local_bytes, same
from titan_pt.optimizers.trial import IN_NO_CHECKPOINT, check_callable, own_state_functions, try_steps
from titan_pt.protocols.parts import OptimizerState

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
        self._earlier = earlier
        self._optimizer, self._world = optimizer, world
        self._parameters = {parameter_name(name): tensor for name, tensor in model.named_parameters()}
        self._state = HeldState(optimizer, self._parameters)
        self._kind, self._start = self._state.kind, self._state.start
        check_callable(optimizer)
        self._check_parameters()
        self._known = {id(tensor): name for name, tensor in (*model.named_parameters(), *model.named_buffers())}
        self._attributes = fingerprints(optimizer, self._known) if not self._state.own else {}
        self.resets = not optimizer.state and not self._state.own

    def check(self) -> None:
        """Try steps, a save and a resume on stand-ins for the parameters; before a checkpoint is loaded.

        Raises:
            ConfigError: it is not known that its state is saved and resumed to the bit; on all ranks.
        """

        def trial() -> None:
            if problem := try_steps(self._optimizer, self._parameters, HeldState):
                raise ConfigError(f"optimizer {self._kind}: {problem}")

        self._world.together(trial)

    def _check_parameters(self) -> None:
        ids = {id(tensor) for tensor in self._parameters.values()}
        for number, group in enumerate(self._optimizer.param_groups, 1):
            if others := [tensor for tensor in group["params"] if id(tensor) not in ids]:
                raise ConfigError(
                    f"optimizer {self._kind}: {len(others)} of the {len(group['params'])} tensors of its group "
                    f"{group.get('name', number)} are no parameters of the model, the first of shape "
                    f"{tuple(others[0].shape)}: training would not change the model by them, nor a checkpoint hold "
                    "them; build_optimizers must give it the very tensors of model.parameters(), no copies"
                )

    def tensors(self) -> dict[str, torch.Tensor]:
        """Tensors by name; sharded ones as DTensors."""
        return self._encode()[1]

    def document(self) -> Json:
        """Everything else as JSON. A collective: what is not sharded must be equal on all ranks.

        Raises:
            ConfigError: it is not, or there is something that cannot be saved.
        """
        now = fingerprints(self._optimizer, self._known) if not self._state.own else {}
        if changed := [name for name in {**self._attributes, **now} if self._attributes.get(name) != now.get(name)]:
            raise ConfigError(
                f"optimizer {self._kind}: its step changed the attribute {changed[0]}, {IN_NO_CHECKPOINT}"
            )
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
        try:
            self._state.load(document, tensors)
        except UnsavableState as error:
            raise ConfigError(f"optimizer {self._kind}: {error}; {_WAY_OUT}") from None

    def reset(self) -> None:
        """Let the state be as before the first step; only where `resets`."""
        assert self.resets, "grpo refuses another optimizer"
        self._optimizer.state.clear()
        for group, start in zip(self._optimizer.param_groups, self._start, strict=True):
            group.update(copy.deepcopy(start))

    def _encode(self) -> tuple[Json, dict[str, torch.Tensor]]:
        try:
            return self._state.encode()
        except UnsavableState as error:
            raise ConfigError(f"optimizer {self._kind}: {error}") from None

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


class HeldState:
    """The state of an optimizer as JSON and tensors, and back.

    Args:
        parameters: those of the model by name.
    """

    def __init__(self, optimizer: Optimizer, parameters: Mapping[str, torch.Tensor]) -> None:
        self.kind = f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"
        self.own = own_state_functions(optimizer)
        """Whether the optimizer's own functions save and restore it."""
        self.start = [_entries(group) for group in optimizer.param_groups]
        self._optimizer, self._parameters = optimizer, parameters

    def load(self, document: Json, tensors: Mapping[str, torch.Tensor]) -> None:
        """Set the state.

        Raises:
            UnsavableState: it is not, then, what was given.
        """
        local = {
            name: tensor.to_local() if entry["layout"] == "local" and isinstance(tensor, DTensor) else tensor
            for name, entry in document["tensors"].items()
            for tensor in (tensors[name],)
        }
        content = decode(document["content"], local, self._parameters)
        if self.own:
            self._load_own(content, document, tensors)
            return
        self._optimizer.state.clear()
        for key, value in content["state"].items():
            self._optimizer.state[key] = value
        for name, value in content["parameters"].items():
            self._optimizer.state[self._parameters[name]] = value
        for group, changed in zip(self._optimizer.param_groups, content["changed"], strict=True):
            group.update(changed)
        again, held = self.encode()
        both = [json["content"]["dict"][:2] for json in (again, document)]  # what "changed" says depends on the config
        if both[0] != both[1] or not same({name: held[name] for name in held if name in tensors}, tensors):
            raise UnsavableState(
                "its state does not hold what a checkpoint put into it; define state_dict and load_state_dict"
            )

    def _load_own(self, content: Any, document: Json, tensors: Mapping[str, torch.Tensor]) -> None:
        rates = [{key: group[key] for key in _RATES if key in group} for group in self._optimizer.param_groups]
        self._optimizer.load_state_dict(content["own"])
        again, held = self.encode()
        if again["content"] != document["content"] or not same(held, tensors):
            raise UnsavableState(_NOT_RESTORED)
        # What the optimizer did not change follows from the config, which may be another one now.
        for group, there, here, rate in zip(
            self._optimizer.param_groups, content["start"], self.start, rates, strict=True
        ):
            group.update({key: here[key] for key in here if key in there and equal(group.get(key), there[key])})
            group.update(rate)

    def encode(self) -> tuple[Json, dict[str, torch.Tensor]]:
        """(JSON, the tensors by the names that stand in it) of the whole state.

        Raises:
            UnsavableState: there is something that cannot be saved.
        """
        encoder = StateEncoder(self._parameters)
        content = self._own_content(encoder) if self.own else self._content(encoder)
        sizes = [len(group["params"]) for group in self._optimizer.param_groups]
        return {"kind": self.kind, "groups": sizes, "tensors": encoder.entries, "content": content}, encoder.tensors

    def _own_content(self, encoder: StateEncoder) -> Json:
        return encoder.encode({"own": self._optimizer.state_dict(), "start": self.start}, (), None)

    def _content(self, encoder: StateEncoder) -> Json:
        groups = zip(self._optimizer.param_groups, self.start, strict=True)
        changed = [
            {key: value for key, value in _entries(group).items() if key not in old or not equal(value, old[key])}
            for group, old in groups
        ]
        held, others = state_by_name(self._optimizer, self._parameters)
        by_name = [[k, encoder.encode(v, (k,), self._parameters[k])] for k, v in held.items()]
        state, groups_changed = encoder.encode(others, ("state",), None), encoder.encode(changed, ("groups",), None)
        return {"dict": [["parameters", {"dict": by_name}], ["state", state], ["changed", groups_changed]]}


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
