"""Log-probabilities of given tokens and the entropy at each, without holding all logits at once.

Legend: T tokens (B x L, flat), D model dim, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from titan_pt.data.stream.batch import IGNORED

CHUNK_ELEMENTS = 2**26


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probabilities and entropies of one micro-batch; 0 where the target is ignored."""

    logprobs_BL: torch.Tensor
    """log p(target), float32, with gradient."""
    entropy_BL: torch.Tensor
    """Entropy of the distribution over the next token in nats, float32, no gradient."""


def logprob_head(
    targets_BL: torch.Tensor, *, temperature: float = 1.0, num_tokens: int | None = None, elements: int = CHUNK_ELEMENTS
) -> Callable[[torch.Tensor, torch.Tensor], TokenLogprobs]:
    """A head for `Transformer.forward` that gives the log-probabilities of `targets_BL` at the engine's temperature.

    The output layer is computed in float32, whatever the type of the model: it is the cheapest way to keep these
    numbers close to the engine's. The logits are divided by the temperature that the engine sampled at.

    Args:
        targets_BL: token ids; IGNORED where there is nothing to score.
        temperature: temperature of the sampling; 0 (greedy) scores at 1.
        num_tokens: rows of the vocabulary that stand for a token; the others have no probability.
        elements: most logits held at a time.
    """

    def apply(hidden_BLD: torch.Tensor, weight_VD: torch.Tensor) -> TokenLogprobs:
        logprobs_T, entropy_T = _ChunkedLogprobs.apply(
            hidden_BLD.flatten(0, -2),
            weight_VD,
            targets_BL.flatten(),
            1.0 / (temperature or 1.0),
            num_tokens or weight_VD.shape[0],
            max(1, elements // weight_VD.shape[0]),
        )
        return TokenLogprobs(logprobs_T.view_as(targets_BL), entropy_T.view_as(targets_BL))

    return apply


class _ChunkedLogprobs(torch.autograd.Function):
    """Log-probabilities in chunks. The backward computes the logits again, since the tokens' gradients come late."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: torch.Tensor,
        weight_VD: torch.Tensor,
        targets_T: torch.Tensor,
        scale: float,
        num_tokens: int,
        rows: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(hidden_TD, weight_VD, targets_T)
        ctx.options = scale, num_tokens, rows
        weight = weight_VD[:num_tokens].float()
        chosen, entropies = [], []
        for start in range(0, hidden_TD.shape[0], rows):
            part = slice(start, start + rows)
            kept_T, safe_T = _split(targets_T[part])
            log_p_TV = torch.log_softmax(F.linear(hidden_TD[part].float(), weight) * scale, dim=-1)
            chosen.append(torch.where(kept_T, log_p_TV.gather(-1, safe_T)[:, 0], 0.0))
            entropies.append(torch.where(kept_T, -(log_p_TV.exp() * log_p_TV).sum(-1), 0.0))
        entropy_T = torch.cat(entropies)
        ctx.mark_non_differentiable(entropy_T)
        return torch.cat(chosen), entropy_T

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_TD, weight_VD, targets_T = ctx.saved_tensors
        scale, num_tokens, rows = ctx.options
        weight = weight_VD[:num_tokens].float()
        grad_hidden_TD = torch.empty_like(hidden_TD)
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32)
        for start in range(0, hidden_TD.shape[0], rows):
            part = slice(start, start + rows)
            kept_T, safe_T = _split(targets_T[part])
            hidden = hidden_TD[part].float()
            # d log p(y) / d logits = onehot(y) - softmax
            gradient_TV = torch.softmax(F.linear(hidden, weight) * scale, dim=-1).neg_()
            gradient_TV.scatter_add_(-1, safe_T, torch.ones_like(safe_T, dtype=gradient_TV.dtype))
            gradient_TV *= (torch.where(kept_T, grads[0][part], 0.0) * scale)[:, None]
            grad_hidden_TD[part] = gradient_TV @ weight
            grad_weight_VD[:num_tokens] += gradient_TV.T @ hidden
        return grad_hidden_TD, grad_weight_VD.to(weight_VD.dtype), None, None, None, None


def _split(targets_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(kept_T, targets_T1 with a harmless id where ignored)."""
    kept_T = targets_T != IGNORED
    return kept_T, torch.where(kept_T, targets_T, 0)[:, None]
