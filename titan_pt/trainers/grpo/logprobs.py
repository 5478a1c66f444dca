"""Log-probabilities of given tokens and the entropy at each, in float32, without holding the logits of many tokens.

Legend: T tokens (B x L, flat), D model dim, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from titan_pt.components.loss import chunk_size
from titan_pt.data.stream.batch import IGNORED
from titan_pt.generation.decode import has_mixed_product

# Logits of one chunk: 256 MiB in float32.
CHUNK_ELEMENTS = 2**26

# Logits of one chunk on a CPU, whose caches are soon full: 32 MiB.
_CPU_CHUNK_ELEMENTS = 2**23


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probabilities and entropies of one micro-batch; 0 where the target is ignored."""

    logprobs_BL: torch.Tensor
    """log p(target), float32, with gradient."""
    entropy_BL: torch.Tensor
    """Entropy of the distribution over the next token in nats, float32, no gradient."""


def logprob_head(
    targets_BL: torch.Tensor,
    *,
    temperature: float = 1.0,
    num_tokens: int | None = None,
    elements: int = CHUNK_ELEMENTS,
    softcap: float | None = None,
) -> Callable[[torch.Tensor, torch.Tensor], TokenLogprobs]:
    """A head for `Transformer.forward` that gives the log-probabilities of `targets_BL` at the engine's temperature.

    The output layer is summed in float32, whatever the type of the model: it is the cheapest way to keep these numbers
    close to the engine's. The logits are divided by the temperature that the engine sampled at.

    Args:
        targets_BL: token ids; IGNORED where there is nothing to score.
        temperature: temperature of the sampling; 0 (greedy) scores at 1.
        num_tokens: rows of the vocabulary that stand for a token; the others have no probability.
        elements: most logits of a chunk; gradients of up to twice as many are kept for the backward.
        softcap: logits are softcap * tanh(logits / softcap), before the temperature.
    """

    def apply(hidden_BLD: torch.Tensor, weight_VD: torch.Tensor) -> TokenLogprobs:
        logprobs_T, entropy_T = _ChunkedLogprobs.apply(
            hidden_BLD.flatten(0, -2),
            weight_VD,
            targets_BL.flatten(),
            1.0 / (temperature or 1.0),
            num_tokens or weight_VD.shape[0],
            elements,
            torch.is_grad_enabled(),
            softcap,
        )
        return TokenLogprobs(logprobs_T.view_as(targets_BL), entropy_T.view_as(targets_BL))

    return apply


class _ChunkedLogprobs(torch.autograd.Function):
    """Log-probabilities in chunks. Gradients of the logits are kept where there are few, else computed again."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: torch.Tensor,
        weight_VD: torch.Tensor,
        targets_T: torch.Tensor,
        scale: float,
        num_tokens: int,
        elements: int,
        with_gradient: bool,
        softcap: float | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        weight = weight_VD[:num_tokens]
        most = min(elements, _CPU_CHUNK_ELEMENTS) if hidden_TD.is_cpu else elements
        rows = chunk_size(hidden_TD.shape[0], most // num_tokens)
        kept_TV = None
        if with_gradient and hidden_TD.shape[0] * num_tokens <= 2 * elements:
            kept_TV = hidden_TD.new_empty(hidden_TD.shape[0], num_tokens, dtype=product_type(hidden_TD))
        chosen, entropies = [], []
        for start in range(0, hidden_TD.shape[0], rows):
            part = slice(start, start + rows)
            log_p_TV, slope_TV = log_softmax(hidden_TD[part], weight, scale, softcap)
            kept_T, safe_T = split(targets_T[part])
            chosen.append(torch.where(kept_T, log_p_TV.gather(-1, safe_T)[:, 0], 0.0))
            p_TV = log_p_TV.exp()
            entropies.append(torch.where(kept_T, -torch.linalg.vecdot(p_TV, log_p_TV), 0.0))
            if kept_TV is not None:
                kept_TV[part] = less_one(p_TV, safe_T) if slope_TV is None else less_one(p_TV, safe_T) * slope_TV
        ctx.save_for_backward(hidden_TD, weight_VD, targets_T, kept_TV)
        ctx.options = scale, num_tokens, softcap, rows if kept_TV is None else hidden_TD.shape[0]
        entropy_T = torch.cat(entropies)
        ctx.mark_non_differentiable(entropy_T)
        return torch.cat(chosen), entropy_T

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_TD, weight_VD, targets_T, kept_TV = ctx.saved_tensors
        scale, num_tokens, softcap, rows = ctx.options
        weight = weight_VD[:num_tokens]
        grad_hidden_TD = torch.empty_like(hidden_TD)
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for start in range(0, hidden_TD.shape[0], rows):
            part = slice(start, start + rows)
            hidden = hidden_TD[part]
            kept_T, safe_T = split(targets_T[part])
            if kept_TV is None:
                log_p_TV, slope_TV = log_softmax(hidden, weight, scale, softcap)
                gradient_TV = less_one(log_p_TV.exp_(), safe_T)
                gradient_TV = (gradient_TV if slope_TV is None else gradient_TV * slope_TV).to(product_type(hidden))
            else:
                gradient_TV = kept_TV[part]
            # d log p(y) / d logits = onehot(y) - softmax
            factor_T1 = torch.where(kept_T, grads[0][part], 0.0)[:, None] * -scale
            grad_hidden_TD[part] = product(gradient_TV, weight) * factor_T1
            if grad_weight_VD is not None:  # it is frozen under [lora]
                grad_weight_VD[:num_tokens] += product(gradient_TV.T, (hidden * factor_T1).to(hidden.dtype))
        if grad_weight_VD is not None:
            grad_weight_VD = grad_weight_VD.to(weight_VD.dtype)
        return grad_hidden_TD, grad_weight_VD, None, None, None, None, None, None


def product(a_TD: torch.Tensor, b_DV: torch.Tensor) -> torch.Tensor:
    """The matrix product in float32. Of bfloat16 matrices where the device's kernel sums such products in float32."""
    if has_mixed_product(a_TD):
        return torch.mm(a_TD, b_DV, out_dtype=torch.float32)
    return a_TD.float() @ b_DV.float()


def product_type(hidden_TD: torch.Tensor) -> torch.dtype:
    """Type in which the gradient of the logits enters the products."""
    return hidden_TD.dtype if has_mixed_product(hidden_TD) else torch.float32


def log_softmax(
    hidden_TD: torch.Tensor, weight_VD: torch.Tensor, scale: float, softcap: float | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(log p_TV, d capped logits / d logits_TV, None without a cap)."""
    logits_TV, slope_TV = product(hidden_TD, weight_VD.T), None
    if softcap:
        tanh_TV = logits_TV.div_(softcap).tanh_()
        slope_TV = 1.0 - tanh_TV.square()
        logits_TV = tanh_TV.mul_(softcap)
    return torch.log_softmax(logits_TV if scale == 1.0 else logits_TV.mul_(scale), dim=-1), slope_TV


def less_one(p_TV: torch.Tensor, tokens_T1: torch.Tensor) -> torch.Tensor:
    """softmax - onehot, in place."""
    return p_TV.scatter_add_(-1, tokens_T1, torch.full_like(tokens_T1, -1, dtype=p_TV.dtype))


def split(targets_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(kept_T, targets_T1 with a harmless id where ignored)."""
    kept_T = targets_T != IGNORED
    return kept_T, torch.where(kept_T, targets_T, 0)[:, None]
