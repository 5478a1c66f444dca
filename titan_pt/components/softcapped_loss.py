"""Cross-entropy of capped logits, softcap * tanh(logits / softcap) (Gemma 2, 2408.00118); imported where they are."""

from typing import Any

import torch
import torch.nn.functional as F

from titan_pt.components.loss import ChunkFunction, loss_of_logits


def softcapped_chunk(softcap: float) -> ChunkFunction:
    """The chunk function of `ChunkedCrossEntropy` with a cap."""

    def chunk(
        hidden_TD: torch.Tensor,
        weight_VD: torch.Tensor,
        targets_T: torch.Tensor,
        z_loss_coef: float,
        with_gradient: bool,
    ) -> Any:
        tanh_TV = torch.tanh(F.linear(hidden_TD, weight_VD).float() / softcap)
        losses_T, log_z_T, gradient_TV = loss_of_logits(softcap * tanh_TV, targets_T, z_loss_coef, with_gradient)
        if gradient_TV is not None:
            gradient_TV = (gradient_TV * (1.0 - tanh_TV.square())).to(hidden_TD.dtype)
        return losses_T, log_z_T, gradient_TV

    return chunk
