"""Attention where a document has parts that do not see each other, such as several answers to one question.

Legend: B batch, L sequence.
"""

import torch

from titan_pt.models.transformer.attention import Mask, compiled_block_mask, uses_flex


def segment_mask(positions_BL: torch.Tensor, segments_BL: torch.Tensor) -> Mask:
    """The mask of `attention.document_mask`, where a token sees segment 0 of its document and its own segment alone."""
    documents_BL = (positions_BL == 0).cumsum(dim=1)
    if uses_flex(positions_BL.device):

        def visible(b: torch.Tensor, _h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
            same_segment = (segments_BL[b, k] == 0) | (segments_BL[b, q] == segments_BL[b, k])
            return (q >= k) & (documents_BL[b, q] == documents_BL[b, k]) & same_segment

        batch, length = positions_BL.shape
        return compiled_block_mask()(visible, batch, None, length, length, device=positions_BL.device)
    same_BLL = documents_BL[:, :, None] == documents_BL[:, None]
    same_BLL &= (segments_BL[:, None] == 0) | (segments_BL[:, :, None] == segments_BL[:, None])
    return same_BLL.tril()[:, None]
