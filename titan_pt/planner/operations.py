"""The operations of a step and the bytes that they move, counted while it runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop, sdpa_flop

_aten = torch.ops.aten
_ALLOCATIONS = {_aten.empty, _aten.new_empty, _aten.empty_strided, _aten.new_empty_strided, _aten.zeros_like}


@dataclass(frozen=True)
class Operations:
    """The work of one rank in a step of one micro-batch."""

    flops: int
    """Operations of matrix products and attention, recomputation included."""
    moved_bytes: int
    """Bytes that forward, backward and recomputation read and write, each kernel by itself."""
    update_bytes: int
    """Bytes that the optimizer's step reads and writes."""


def count_operations(step: Callable[[], Any], optimizer: Optimizer) -> Operations:
    """Run one step and count its work. Kernels that torch.compile would fuse are counted one by one."""
    before_update = 0
    with _ByteCounter() as counter:

        def mark(*_: Any) -> None:
            nonlocal before_update
            before_update = counter.moved_bytes

        hook = optimizer.register_step_pre_hook(mark)
        flops = count_flops(step)
        hook.remove()
    return Operations(flops, before_update, counter.moved_bytes - before_update)


def count_flops(step: Callable[[], Any]) -> int:
    """Operations of matrix products and attention, including the CPU's own attention that torch's table leaves out."""

    def forward(q: torch.Size, k: torch.Size, v: torch.Size, *_: Any, **__: Any) -> int:
        return sdpa_flop(q, _with_heads_of(q, k), _with_heads_of(q, v))

    def backward(grad: torch.Size, q: torch.Size, k: torch.Size, v: torch.Size, *_: Any, **__: Any) -> int:
        return sdpa_backward_flop(grad, q, _with_heads_of(q, k), _with_heads_of(q, v))

    more = {
        _aten._scaled_dot_product_flash_attention: forward,
        _aten._scaled_dot_product_flash_attention_backward: backward,
        _aten._scaled_dot_product_flash_attention_for_cpu: forward,
        _aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
    with FlopCounterMode(display=False, custom_mapping=more) as counter:
        step()
    return counter.get_total_flops()


def _with_heads_of(q_shape: torch.Size, shape: torch.Size) -> torch.Size:
    """The shape with one key head a query head: torch before 2.12 refuses fewer, and the operations are as many."""
    return torch.Size([*q_shape[:2], *shape[2:]])


class _ByteCounter(TorchDispatchMode):
    """Adds up the inputs and outputs of every kernel; views and allocations move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.moved_bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view and func.namespace != "prim" and func.overloadpacket not in _ALLOCATIONS:
            self.moved_bytes += sum(_num_bytes(value) for value in tree_iter((args, kwargs or {}, out)))
        return out


def _num_bytes(value: Any) -> int:
    if isinstance(value, DTensor):
        value = value._local_tensor
    return value.nbytes if isinstance(value, torch.Tensor) else 0
