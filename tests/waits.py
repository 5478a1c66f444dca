"""Counts what makes the host wait for the values of a tensor."""

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
WAITING = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.bincount.default,
    aten.repeat_interleave.Tensor,
}
INDEXING = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
}


class CountWaits(TorchDispatchMode):
    """Counts operators of WAITING, and indexing by a mask, whose result has as many elements as there are Trues.

    Copies to the host look like none on a CPU: `fake_cuda.py` counts those.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.operators = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators += 1
        if func in WAITING or (func in INDEXING and any(i is not None and i.dtype == torch.bool for i in args[1])):
            self.waits[str(func)] += 1
        return func(*args, **(kwargs or {}))
