"""The memory of one rank at the peak of a step, by kind, from running the step on tensors without numbers."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker, _FSDPRefType
from torch.distributed.tensor import DTensor

_KINDS = {
    "parameters": (_FSDPRefType.SHARDED_PARAM, _FSDPRefType.BUFFER),
    "gradients": (_FSDPRefType.SHARDED_GRAD, _FSDPRefType.UNSHARDED_GRAD),
    "optimizer": (_FSDPRefType.OPT,),
    "activations": (_FSDPRefType.ACT,),
    "logits": (_FSDPRefType.INP,),
    "communication": (_FSDPRefType.UNSHARDED_PARAM, _FSDPRefType.ALL_GATHER, _FSDPRefType.REDUCE_SCATTER),
    "temporary": (_FSDPRefType.TEMP,),
}
# Kinds of memory that is free between steps.
_FREED = ("gradients", "activations", "logits", "communication", "temporary")


def peak_of(kinds: Mapping[str, float], sampling_bytes: float) -> float:
    """The larger of a step's bytes, and of sampling beside what stays in memory between steps."""
    staying = sum(size for kind, size in kinds.items() if kind not in _FREED)
    return max(sum(kinds.values()), staying + sampling_bytes)


def storage_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the tensors' storages on this rank, shared ones counted once."""
    local = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    return sum({id(tensor.untyped_storage()): tensor.untyped_storage().nbytes() for tensor in local}.values())


class MemoryTracker(FSDPMemTracker):
    """Adds up the tensors that are alive, and tells those of the loss from activations.

    Tensors of the loss get torch's kind for inputs, which nothing else has here.
    """

    _in_loss = False

    def mark_loss(self, _model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """A forward pre-hook of the model, whose argument `head` computes the loss."""

        def marked(head: Callable[..., Any]) -> Callable[..., Any]:
            def run(*inputs: Any) -> Any:
                self._in_loss = True
                try:
                    return head(*inputs)
                finally:
                    self._in_loss = False

            return run

        return (
            tuple(marked(value) if _is_head(value) else value for value in args),
            {name: marked(value) if _is_head(value) else value for name, value in kwargs.items()},
        )

    def peak_by_kind(self) -> dict[str, int]:
        """Bytes of each kind at the peak."""
        snapshots = self.get_tracker_snapshot("peak").values()
        peak: dict[Any, int] = max(snapshots, key=lambda snapshot: snapshot["Total"])
        return {kind: sum(peak[part] for part in parts) for kind, parts in _KINDS.items()}

    def _update_peak_stats(self, peak_state: Any) -> None:
        """Keep the whole step's peak alone: torch's copies of the snapshot for each module take a third of the time."""
        for device, now in self._curr_mem_snap.items():
            if self._peak_mem.get(device, 0) < now["Total"]:
                self._peak_mem[device], self._peak_mem_snap[device] = now["Total"], dict(now)

    def _track(self, reftype: Any, t: torch.Tensor) -> None:
        super()._track(_FSDPRefType.INP if self._in_loss and reftype is _FSDPRefType.ACT else reftype, t)


def _is_head(value: Any) -> bool:
    return callable(value) and not isinstance(value, torch.Tensor)
