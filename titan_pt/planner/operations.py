"""The kernels of a step: operations, bytes and collectives, counted while it runs."""

import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _resolve_process_group
from torch.utils.flop_counter import flop_registry

_aten = torch.ops.aten
_ALLOCATIONS = {_aten.empty, _aten.new_empty, _aten.empty_strided, _aten.new_empty_strided, _aten.zeros_like}
COLLECTIVES = ("c10d", "_c10d_functional")
# Ranks that share the fast link.
NODE_RANKS = 8
# Where the arguments of attention say whether it is causal; torch's table of formulas leaves the CPU's own out.
_FORWARD = {_aten._scaled_dot_product_flash_attention: 4, _aten._scaled_dot_product_flash_attention_for_cpu: 4}
_BACKWARD = {
    _aten._scaled_dot_product_flash_attention_backward: 11,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: 7,
}

KernelKind = Literal["product", "attention", "attention_backward", "memory", "collective"]


@dataclass(frozen=True)
class Kernel:
    """One kernel's size; equal ones are counted together."""

    kind: KernelKind
    dtype: torch.dtype
    sides: tuple[int, ...]
    """A product's three, smallest first; of attention the head dim; of a collective its ranks and their nodes."""
    flops: int
    """Operations that it does: causal attention does half of those that a model's FLOPs count."""
    moved_bytes: int
    """Bytes that it reads and writes; of a collective those that it sends and receives."""


@dataclass(frozen=True)
class Operations:
    """The work of one rank in a step of one micro-batch."""

    flops: int
    """Operations of matrix products and attention, recomputation included, attention not halved."""
    moved_bytes: int
    """Bytes that forward, backward and recomputation read and write, each kernel by itself."""
    update_bytes: int
    """Bytes that the optimizer's step reads and writes, but for those of its products and collectives."""
    kernels: Mapping[Kernel, int] = field(default_factory=dict)
    """Products, attention and collectives of forward and backward with their numbers."""
    other_bytes: int = 0
    """Bytes of all other kernels of forward and backward, each by itself."""
    fused_bytes: int = 0
    """The same where kernels between two products are one, as torch.compile makes them: it reads its inputs once, and
    writes what is used later."""
    launches: int = 0
    """Kernels of forward and backward, each by itself."""
    fused_launches: int = 0
    """The same where those between two products are one."""
    update_kernels: Mapping[Kernel, int] = field(default_factory=dict)
    """Products and collectives of the optimizer's step with their numbers."""

    @property
    def update_flops(self) -> int:
        """Operations of the optimizer's matrix products."""
        return sum(kernel.flops * number for kernel, number in self.update_kernels.items())


class KernelLog:
    """Collects the kernels of a step, one at a time."""

    def __init__(self) -> None:
        self._kernels: Counter[Kernel] = Counter()
        self._update_kernels: Counter[Kernel] = Counter()
        self._flops = self._moved = self._update = self._other = self._fused = self._launches = self._fusions = 0
        self._fusion = _Fusion()
        self._in_update = False

    def begin(self, func: Any) -> None:
        """Before a kernel: a product reads what the kernels before it left."""
        if _is_product(func) or func.namespace in COLLECTIVES:
            self._end_fusion()

    def note(self, func: Any, args: Sequence[Any], inputs: Sequence[torch.Tensor], out: Sequence[torch.Tensor]) -> None:
        """After a kernel: count it. Views and allocations move nothing."""
        if func.is_view or func.overloadpacket in _ALLOCATIONS:
            return
        moved = sum(tensor.nbytes for tensor in (*inputs, *out))
        if func.namespace in COLLECTIVES:
            kernels = self._update_kernels if self._in_update else self._kernels
            kernels.update(_collective(func, args, inputs))
            return
        if self._in_update:
            if _is_product(func):
                self._update_kernels[_product(func, args, inputs, out, moved)[0]] += 1
            else:
                self._update += moved
            return
        self._moved += moved
        self._launches += 1
        if _is_product(func):
            kernel, flops = _product(func, args, inputs, out, moved)
            self._flops += flops
            self._kernels[kernel] += 1
            return
        self._other += moved
        self._fusion.add(inputs, out)

    def begin_update(self) -> None:
        """What follows is the optimizer's."""
        self._end_fusion()
        self._in_update = True

    def close(self) -> None:
        """The step is over."""
        self._end_fusion()

    def operations(self) -> Operations:
        """All that was noted."""
        return Operations(
            flops=self._flops,
            moved_bytes=self._moved,
            update_bytes=self._update,
            kernels=dict(self._kernels),
            other_bytes=self._other,
            fused_bytes=self._fused,
            launches=self._launches,
            fused_launches=self._fusions + sum(n for kernel, n in self._kernels.items() if kernel.kind != "collective"),
            update_kernels=dict(self._update_kernels),
        )

    def _end_fusion(self) -> None:
        if self._fusion.read or self._fusion.made:
            self._fused += self._fusion.moved_bytes()
            self._fusions += 1
            self._fusion = _Fusion()


@dataclass
class _Fusion:
    """Kernels that run between two products."""

    read: dict[int, int] = field(default_factory=dict)
    """Bytes of each storage that was there before."""
    made: dict[int, tuple["weakref.ref[Any]", int]] = field(default_factory=dict)

    def add(self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> None:
        for tensor in outputs:
            storage = tensor.untyped_storage()
            if id(storage) not in self.read:
                self.made[id(storage)] = (weakref.ref(storage), tensor.nbytes)
        for tensor in inputs:
            key = id(tensor.untyped_storage())
            if key not in self.made:
                self.read[key] = max(self.read.get(key, 0), tensor.nbytes)

    def moved_bytes(self) -> int:
        left = sum(size for storage, size in self.made.values() if storage() is not None)
        return sum(self.read.values()) + left


def _is_product(func: Any) -> bool:
    packet = func.overloadpacket
    return packet in flop_registry or packet in (_aten.addmm_, *_FORWARD, *_BACKWARD)


def _product(
    func: Any, args: Sequence[Any], inputs: Sequence[torch.Tensor], out: Sequence[torch.Tensor], moved: int
) -> tuple[Kernel, int]:
    """(the kernel of a product or of attention, its operations by the convention of the MFU)."""
    packet = func.overloadpacket
    backward = packet in _BACKWARD
    if backward or packet in _FORWARD:
        q, k = args[1:3] if backward else args[:2]
        causal = args[_BACKWARD[packet]] if backward else len(args) > _FORWARD[packet] and args[_FORWARD[packet]]
        flops = (10 if backward else 4) * q.numel() * k.shape[2]
        kind: KernelKind = "attention_backward" if backward else "attention"
        return Kernel(kind, q.dtype, (q.shape[-1],), flops // 2 if causal else flops, moved), flops
    counted = _aten.addmm if packet is _aten.addmm_ else packet
    flops = flop_registry[counted](*args, out_val=out[0] if len(out) == 1 else tuple(out))
    added = counted in (_aten.addmm, _aten.baddbmm)  # to another input, which comes first
    left, right = [tensor for tensor in inputs if tensor.ndim >= 2][-2 if added else 0 :][:2]
    sides = tuple(sorted((left.shape[-2], left.shape[-1], right.shape[-1])))
    return Kernel("product", left.dtype, sides, flops, moved), flops


def _collective(func: Any, args: Sequence[Any], inputs: Sequence[torch.Tensor]) -> list[Kernel]:
    """A transfer of all but this rank's part of the largest tensor, twice for a sum on all ranks; none for one rank."""
    ranks = next((_ranks(value) for value in args if isinstance(value, str | torch.ScriptObject) and _ranks(value)), [])
    if len(ranks) < 2 or not inputs:
        return []
    largest = max(inputs, key=lambda tensor: tensor.nbytes)
    times = 2 if "reduce_" in func.name() and "scatter" not in func.name() else 1
    sent = times * largest.nbytes * (len(ranks) - 1) // len(ranks)
    nodes = len({rank // NODE_RANKS for rank in ranks})
    return [Kernel("collective", largest.dtype, (len(ranks), nodes), 0, sent)]


def _ranks(group: Any) -> list[int]:
    """The ranks of a group that an operation names; [] of anything else."""
    try:
        found: Any = group
        found = _resolve_process_group(found) if isinstance(group, str) else dist.ProcessGroup.unbox(group)
    except (RuntimeError, ValueError, LookupError, TypeError):
        return []  # another kind of argument, such as the name of a sum
    return dist.get_process_group_ranks(found)
