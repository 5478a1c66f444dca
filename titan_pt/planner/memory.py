"""The memory of one rank at the peak of a step, by kind, and what a device needs for it.

The peak is found by running the step on tensors without numbers, and adding up the storages that are alive.
"""

import contextlib
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from titan_pt.components.accelerators import GIB
from titan_pt.config.schema.job_config import JobConfig

# CUDA's own context, NCCL's buffers, and the part of the allocator's memory that lies between tensors.
CONTEXT_BYTES = 1.25 * GIB
FRAGMENTATION = 0.08

ELEMENT_BYTES = {"bfloat16": 2, "float32": 4}

KINDS = ("parameters", "gradients", "optimizer", "activations", "logits", "communication", "temporary")
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
    away = ("parameters", "gradients", "optimizer", "averaged_weights") if offloads else ()
    return {kind: size for kind, size in kinds.items() if kind not in away}


def peak_of(kinds: Mapping[str, float], sampling_bytes: float) -> float:
    """The larger of a step's bytes, and of sampling beside what stays in memory between steps."""
    return max(sum(kinds.values()), staying_bytes(kinds) + sampling_bytes)


def staying_bytes(kinds: Mapping[str, float]) -> float:
    """Bytes that stay in memory between steps."""
    return sum(size for kind, size in kinds.items() if kind not in _FREED)


def storage_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the tensors' storages on this rank, shared ones counted once."""
    storages = (plain.untyped_storage() for tensor in tensors for plain in plain_tensors(tensor))
    return sum({id(storage): storage.nbytes() for storage in storages}.values())


@dataclass(eq=False)
class _Block:
    """A storage: its bytes now, and what it is for."""

    size: int
    kind: str
    lasts: bool


class LiveMemory:
    """Storages that are alive, and when they came and went.

    A storage that was there before and is nobody's is not counted: a dry run tells of it otherwise.
    """

    def __init__(self) -> None:
        self._blocks: dict[int, _Block] = {}
        self._references: dict[int, weakref.ref[Any]] = {}
        self._changes: list[tuple[_Block, int]] = []

    def own(self, kind: str, tensors: Iterable[torch.Tensor]) -> None:
        """Count what is alive before and after the step as of this kind."""
        for tensor in tensors:
            for plain in plain_tensors(tensor):
                block = self._block(plain, kind, lasts=True)
                block.kind, block.lasts = kind, True

    def see(self, inputs: Iterable[torch.Tensor], outputs: Iterable[torch.Tensor], kind: str) -> None:
        """Note an operation; storages that it makes are of this kind."""
        for tensor in inputs:
            if id(tensor.untyped_storage()) not in self._blocks:
                self._block(tensor, "", lasts=True)
        for tensor in outputs:
            self._block(tensor, kind)

    def rename(self, tensors: Iterable[torch.Tensor], kind: str) -> None:
        """Say what storages that do not last were for."""
        for tensor in tensors:
            block = self._block(tensor, kind)
            block.kind = block.kind if block.lasts else kind

    @contextlib.contextmanager
    def follow_resizes(self) -> Iterator[None]:
        """Note sizes that change in place, by which FSDP frees gathered parameters: no dispatch mode sees these."""
        resize, memory = torch.UntypedStorage.resize_, self

        def resized(storage: torch.UntypedStorage, size: int) -> Any:
            out = resize(storage, size)
            if (block := memory._blocks.get(id(storage))) is not None:
                memory._change(block, size - block.size)
            return out

        torch.UntypedStorage.resize_ = resized  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            torch.UntypedStorage.resize_ = resize  # type: ignore[method-assign]

    def peak_by_kind(self) -> dict[str, int]:
        """Bytes of each kind at the peak."""
        total = most = at = 0
        for number, (block, delta) in enumerate(self._changes):
            total += delta if block.kind else 0
            if total > most:
                most, at = total, number
        peak = dict.fromkeys(KINDS, 0)
        for block, delta in self._changes[: at + 1]:
            if block.kind:
                peak[block.kind] += delta
        return peak

    def _block(self, tensor: torch.Tensor, kind: str, *, lasts: bool = False) -> _Block:
        storage = tensor.untyped_storage()
        key = id(storage)  # Python's object of a storage lives as long as the storage
        block = self._blocks.get(key)
        if block is None:
            self._blocks[key] = block = _Block(0, kind, lasts)
            self._references[key] = weakref.ref(storage, lambda _: self._forget(key))
            self._change(block, storage.nbytes())
        return block

    def _forget(self, key: int) -> None:
        self._references.pop(key, None)
        if (block := self._blocks.pop(key, None)) is not None:
            self._change(block, -block.size)

    def _change(self, block: _Block, delta: int) -> None:
        block.size += delta
        self._changes.append((block, delta))


def plain_tensors(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The tensors that hold the bytes of one: of a sharded or quantized tensor those inside it."""
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    inside = (getattr(tensor, name) for name in tensor.__tensor_flatten__()[0])
    for value in inside:
        if isinstance(value, torch.Tensor):  # a DTensor's mesh is inside too
            yield from plain_tensors(value)
