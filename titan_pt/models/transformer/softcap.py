"""Attention whose scores are capped, cap * tanh(score / cap) (Gemma 2, 2408.00118, section 2); imported where it is on.

torch has no fused kernel with a cap: on CUDA FlexAttention does it inside its own, elsewhere the scores of
all pairs of tokens are held.

Legend: B batch, N query heads, K key-value heads, G query heads of a key head, L queries, T keys, H head dim.
"""

from typing import Any, NamedTuple

import torch

from titan_pt.models.transformer.flex import FlexMask, flex_mask


class CappedMask(NamedTuple):
    """A mask with a cap, for `attend`."""

    inside: Any
    """A boolean mask_B1LT, blocks of FlexAttention, or None: plain causal attention."""
    cap: float

    def attend(self, q_BNLH: torch.Tensor, k_BKTH: torch.Tensor, v_BKTH: torch.Tensor) -> torch.Tensor:
        """Compute attention output_BNLH."""
        if isinstance(self.inside, FlexMask):
            return self.inside.attend(q_BNLH, k_BKTH, v_BKTH, self.cap)
        q_BKGLH = q_BNLH.unflatten(1, (k_BKTH.shape[1], -1)) * q_BNLH.shape[-1] ** -0.5
        scores_BKGLT = q_BKGLH @ k_BKTH[:, :, None].transpose(-1, -2)
        scores_BKGLT = self.cap * torch.tanh(scores_BKGLT.float() / self.cap)
        visible = self.inside
        if visible is None:
            visible = torch.ones(scores_BKGLT.shape[-2:], dtype=torch.bool, device=q_BNLH.device).tril()
        else:
            visible = visible[:, :, None]
        p_BKGLT = scores_BKGLT.masked_fill(~visible, float("-inf")).softmax(dim=-1)
        return (p_BKGLT.to(v_BKTH.dtype) @ v_BKTH[:, :, None]).flatten(1, 2)


def capped(mask: Any, cap: float, tokens_BL: torch.Tensor, *, trains: bool) -> CappedMask:
    """The mask with a cap.

    Args:
        mask: of `attention.Mask`.
        trains: whole rows are read, and not the tokens that follow a cache.
    """
    if mask is None and trains and tokens_BL.is_cuda:
        mask = flex_mask(torch.arange(tokens_BL.shape[1], device=tokens_BL.device).expand(tokens_BL.shape))
    return CappedMask(mask, cap)
