"""CUDA's fused kernels as a trace on the CPU sees them: what they keep for the backward, not what the CPU's would."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from titan_pt.models.transformer import model as transformer

_attention, _norm = F.scaled_dot_product_attention, F.rms_norm


@contextlib.contextmanager
def cuda_kernels() -> Iterator[None]:
    """Inside, norms and attention of tensors without numbers take the memory that they take on CUDA.

    torch's fake tensors cannot stand for a device that its build does not have; on the CPU a norm is many kernels that
    keep two copies in float32, and attention between documents needs a mask of L x L.
    """
    with (
        _replaced(F, "rms_norm", _rms_norm),
        _replaced(F, "scaled_dot_product_attention", _flash_attention),
        # FlexAttention's blocks take next to nothing, and it keeps what the flash kernel keeps.
        _replaced(transformer, "document_mask", lambda positions_BL: None),
    ):
        yield


@contextlib.contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, original)


class _RmsNorm(torch.autograd.Function):
    """Keeps its input and one number a row, as `_fused_rms_norm` does."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight, x.new_empty(x.shape[:-1], dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)


def _rms_norm(
    x: torch.Tensor, shape: Sequence[int], weight: torch.Tensor | None = None, eps: float | None = None
) -> torch.Tensor:
    return _norm(x, shape, weight, eps) if weight is None else _RmsNorm.apply(x, weight)


def _flash_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attn_mask: torch.Tensor | None = None, **options: Any
) -> torch.Tensor:
    if attn_mask is not None or not options.get("is_causal"):
        return _attention(q, k, v, attn_mask=attn_mask, **options)
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, True)[0]
