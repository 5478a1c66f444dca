"""Causal attention through torch's scaled_dot_product_attention, with or without document boundaries.

Legend: B batch, L sequence, N query heads, K key-value heads, G query heads of a key head, H head dim.
"""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from titan_pt.config.errors import ConfigError, one_of
from titan_pt.protocols.registry import import_attribute

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}

# None is plain causal attention, which every kernel knows without a mask.
Mask = torch.Tensor | BlockMask | None


def kernel_context(backend: str) -> AbstractContextManager[None]:
    """Context that restricts scaled_dot_product_attention to one kernel; "auto" leaves the choice to torch."""
    return nullcontext() if backend == "auto" else sdpa_kernel([BACKENDS[backend]])


def attend(q_BNLH: torch.Tensor, k_BKLH: torch.Tensor, v_BKLH: torch.Tensor, mask: Mask, backend: str) -> torch.Tensor:
    """Compute attention output_BNLH; key and value heads are shared inside the kernel, not repeated in memory."""
    if isinstance(mask, BlockMask):
        # Inside a compiled block it is part of that graph; on its own it must be compiled, or it would hold all scores.
        if torch.compiler.is_compiling():
            return flex_attention(q_BNLH, k_BKLH, v_BKLH, block_mask=mask, enable_gqa=True)
        return _compiled_flex()(q_BNLH, k_BKLH, v_BKLH, block_mask=mask, enable_gqa=True)
    batch, _, length, _ = q_BNLH.shape
    if length == 1 and mask is not None:
        # A new token's query heads that share a key head become that head's queries: torch's bfloat16 kernel of the
        # CPU is 3 to 7 times slower at shared heads, and its flash kernel of CUDA takes no mask.
        q_BKGH = q_BNLH.reshape(batch, k_BKLH.shape[1], -1, q_BNLH.shape[-1])
        out_BKGH = F.scaled_dot_product_attention(q_BKGH, k_BKLH, v_BKLH, attn_mask=mask)
        return out_BKGH.view_as(q_BNLH)
    with kernel_context(backend):
        return F.scaled_dot_product_attention(
            q_BNLH, k_BKLH, v_BKLH, attn_mask=mask, is_causal=mask is None, enable_gqa=True
        )


def document_mask(positions_BL: torch.Tensor, segments_BL: torch.Tensor | None = None) -> Mask:
    """Mask for causal attention inside each packed document; a document starts where the position is 0.

    On CUDA a FlexAttention block mask, because the flash kernels take no mask; elsewhere a boolean mask_B1LL.
    With segments, a token sees those of its document's segment 0 and of its own alone.
    """
    if segments_BL is not None:  # few runs have them
        return import_attribute("titan_pt.models.transformer.segments:segment_mask")(positions_BL, segments_BL)
    documents_BL = (positions_BL == 0).cumsum(dim=1)
    batch, length = positions_BL.shape
    if uses_flex(positions_BL.device):

        def same_document(b: torch.Tensor, _h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
            return (q >= k) & (documents_BL[b, q] == documents_BL[b, k])

        return compiled_block_mask()(same_document, batch, None, length, length, device=positions_BL.device)
    same_BLL = documents_BL[:, :, None] == documents_BL[:, None, :]
    return same_BLL.tril()[:, None]


def uses_flex(device: torch.device) -> bool:
    """Whether documents are kept apart by FlexAttention, and not by scaled_dot_product_attention."""
    return device.type == "cuda"


@functools.cache
def compiled_block_mask() -> Callable[..., BlockMask]:
    """Compiled: uncompiled it would make a score of every pair of tokens."""
    return torch.compile(create_block_mask)


@functools.cache
def _compiled_flex() -> Callable[..., Any]:
    return torch.compile(flex_attention)


@functools.cache
def available_backends(device_type: str, dtype: torch.dtype, head_dim: int) -> tuple[str, ...]:
    """Kernels that run a forward and a backward on this device, found by trying."""
    return tuple(name for name in BACKENDS if _runs(name, device_type, dtype, head_dim))


def _runs(backend: str, device_type: str, dtype: torch.dtype, head_dim: int) -> bool:
    q = torch.zeros(1, 2, 16, head_dim, device=device_type, dtype=dtype, requires_grad=True)
    kv = torch.zeros(1, 1, 16, head_dim, device=device_type, dtype=dtype)
    try:
        attend(q, kv, kv, None, backend).sum().backward()
    except RuntimeError:
        return False
    return True


def check_backend(backend: str, device_type: str, dtype: torch.dtype, head_dim: int) -> None:
    """Raise a ConfigError that names the kernels this device has, if `backend` is not one of them."""
    if backend == "auto":
        return
    available = available_backends(device_type, dtype, head_dim)
    if backend not in available:
        name = str(dtype).removeprefix("torch.")
        raise ConfigError(
            f"model.sdpa_backend = {backend!r}: this device ({device_type}, {name}, head_dim {head_dim}) has "
            f"{one_of(available)}; or use auto"
        )
