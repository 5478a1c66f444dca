"""The memory of one rank at the peak of a step, by kind, and what a device needs for it.

The peak is found by running the step on tensors without numbers, while torch's FSDPMemTracker adds up what is alive.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker, _FSDPRefType
from torch.distributed.tensor import DTensor

from titan_pt.components.accelerators import GIB
from titan_pt.config.schema.job_config import JobConfig

# CUDA's own context, NCCL's buffers, and the part of the allocator's memory that lies between tensors.
CONTEXT_BYTES = 1.25 * GIB
FRAGMENTATION = 0.08

ELEMENT_BYTES = {"bfloat16": 2, "float32": 4}

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


def moment_bytes(config: JobConfig) -> float:
    """Bytes of Adam's moments of one parameter: two of 4 bytes, or two of one byte and a scale of 4 for each 256."""
    return 2 * (1 + 4 / 256) if config.optimizer.name == "AdamW8bit" else 8.0


def needed_bytes(peak: float) -> float:
    """Memory that a device needs for tensors of that peak."""
    return peak * (1 + FRAGMENTATION) + CONTEXT_BYTES


def on_device(kinds: Mapping[str, float], *, offloads: bool) -> dict[str, float]:
    """The kinds that are in the device's memory: with CPU offload all but the states."""
    away = ("parameters", "gradients", "optimizer") if offloads else ()
    return {kind: size for kind, size in kinds.items() if kind not in away}


def peak_of(kinds: Mapping[str, float], sampling_bytes: float) -> float:
    """The larger of a step's bytes, and of sampling beside what stays in memory between steps."""
    return max(sum(kinds.values()), staying_bytes(kinds) + sampling_bytes)


def staying_bytes(kinds: Mapping[str, float]) -> float:
    """Bytes that stay in memory between steps."""
    return sum(size for kind, size in kinds.items() if kind not in _FREED)


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
