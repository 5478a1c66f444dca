"""Causal attention through torch's scaled_dot_product_attention, with or without document boundaries.

Legend: B batch, L sequence, N query heads, K key-value heads, G query heads of a key head, H head dim.
"""

from contextlib import nullcontext
from typing import TYPE_CHECKING, TypeAlias

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

if TYPE_CHECKING:
    from titan_pt.models.transformer.flex import FlexMask
    from titan_pt.models.transformer.varlen import DocumentBounds

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}

SHORT_ROW = 192  # a CPU's kernel takes 32 queries at a time of shorter ones: 2 to 4 times slower gradients in bfloat16

# None is plain causal attention, which every kernel knows without a mask.
Mask: TypeAlias = "torch.Tensor | FlexMask | DocumentBounds | None"


def attend(q_BNLH: torch.Tensor, k_BKLH: torch.Tensor, v_BKLH: torch.Tensor, mask: Mask, backend: str) -> torch.Tensor:
    """Compute attention output_BNLH; key and value heads are shared inside the kernel, not repeated in memory."""
    if isinstance(mask, tuple):  # it brings its own kernel
        return mask.attend(q_BNLH, k_BKLH, v_BKLH)
    if q_BNLH.dtype == torch.bfloat16 and q_BNLH.is_cpu and q_BNLH.shape[2] < SHORT_ROW:
        return attend(q_BNLH.float(), k_BKLH.float(), v_BKLH.float(), mask, backend).bfloat16()
    with nullcontext() if backend == "auto" else sdpa_kernel([BACKENDS[backend]]):
        return F.scaled_dot_product_attention(q_BNLH, k_BKLH, v_BKLH, mask, is_causal=mask is None, enable_gqa=True)


def document_mask(positions_BL: torch.Tensor, segments_BL: torch.Tensor | None = None, *, varlen: bool = False) -> Mask:
    """Mask for causal attention inside each packed document; a document starts where the position is 0.

    With segments, a token sees those of its document's segment 0 and of its own alone. A boolean mask_B1LL; on CUDA
    blocks for FlexAttention, or with `varlen` the bounds of the documents, where they are known and not too many.
    """
    if varlen and segments_BL is None:
        from titan_pt.models.transformer.varlen import document_bounds

        if bounds := document_bounds(positions_BL):
            return bounds
    if uses_flex(positions_BL.device):
        from titan_pt.models.transformer.flex import flex_mask

        return flex_mask(positions_BL, segments_BL)
    documents_BL = (positions_BL == 0).cumsum(dim=1)
    visible_BLL = documents_BL[:, :, None] == documents_BL[:, None, :]
    if segments_BL is not None:
        visible_BLL &= (segments_BL[:, None] == 0) | (segments_BL[:, :, None] == segments_BL[:, None])
    return visible_BLL.tril()[:, None]


def uses_flex(device: torch.device) -> bool:
    """Whether documents are kept apart by FlexAttention, and not by scaled_dot_product_attention."""
    return device.type == "cuda"
