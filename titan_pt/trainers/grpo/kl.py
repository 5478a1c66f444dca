"""KL estimators and importance weights: the distance of two policies at the sampled tokens.

Masked positions may hold anything, also inf and NaN; it reaches neither values nor gradients.

Legend: B sequences, L tokens of a sequence.
"""

import math
from collections.abc import Callable

import torch

# exp(20) = 5e8 is far above any clip and far below overflow; an infinite ratio times an advantage of 0 would be NaN.
MAX_LOG_RATIO = 20.0


def get_kl(name: str) -> Callable[..., torch.Tensor]:
    """The estimator (logprobs_BL, ref_logprobs_BL, mask_BL, max_log_ratio=20) -> kl_BL of this name.

    It estimates KL(pi || pi_ref) at each sampled token, in nats, 0 where masked; with x = log pi_ref - log pi,
    Schulman 2020, "Approximating KL Divergence":

    - `k1`: -x. Unbiased value; its gradient has mean zero, so it is no penalty.
    - `k2`: x^2 / 2. Biased value, the gradient of the KL itself. ProRL v2 uses it, with x clamped to +-10.
    - `k3`: exp(x) - 1 - x. Unbiased value, never negative; its gradient is that of KL(pi_ref || pi). GRPO's.

    x is clamped to +-max_log_ratio; beyond it there is no gradient.

    Raises:
        ValueError: no such estimator.
    """
    if name not in _KL:
        raise ValueError(f"kl_estimator = {name!r}: allowed are {', '.join(_KL)}")

    def kl(
        logprobs_BL: torch.Tensor,
        ref_logprobs_BL: torch.Tensor,
        mask_BL: torch.Tensor,
        max_log_ratio: float = MAX_LOG_RATIO,
    ) -> torch.Tensor:
        x_BL = -log_ratio(logprobs_BL, ref_logprobs_BL, mask_BL)
        return _KL[name](x_BL.clamp(-max_log_ratio, max_log_ratio))

    return kl


def importance_weights(
    logprobs_BL: torch.Tensor, sampler_logprobs_BL: torch.Tensor, mask_BL: torch.Tensor, cap: float = 2.0
) -> torch.Tensor:
    """min(pi_trainer / pi_sampler, cap) for each token, 0 where masked, without gradient.

    Truncated importance sampling, for samples of an engine whose probabilities differ from the trainer's: Ionides
    2008, "Truncated Importance Sampling"; cap 2 as in open-instruct and TRL. Both log-probabilities are of the same
    weights and the same temperature.

    Args:
        logprobs_BL: by the trainer, of the weights that sampled (`old_logprobs_BL` of a loss).
        sampler_logprobs_BL: by the engine that sampled.
        mask_BL: boolean or 0/1.
        cap: largest weight.
    """
    log_ratio_BL = log_ratio(logprobs_BL.detach(), sampler_logprobs_BL, mask_BL)
    return masked(log_ratio_BL.clamp(max=math.log(cap)).exp(), mask_BL)


def k3(x_BL: torch.Tensor) -> torch.Tensor:
    """The k3 estimate exp(x) - 1 - x of the KL divergence."""
    # Not exp(x) - 1 - x, which rounds to a multiple of 1e-7 where the policies nearly agree.
    return x_BL.expm1() - x_BL


_KL: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "k1": torch.neg,
    "k2": lambda x_BL: x_BL.square() / 2,
    "k3": k3,
}


def log_ratio(logprobs_BL: torch.Tensor, fixed_BL: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
    """log(pi / pi_fixed), 0 where masked; no gradient reaches `fixed_BL`."""
    dtype = torch.promote_types(logprobs_BL.dtype, torch.float32)
    return masked(logprobs_BL.to(dtype) - fixed_BL.detach().to(dtype), mask_BL)


def masked(values_BL: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
    """The values, and 0 where masked, also where they are inf or NaN."""
    return torch.where(mask_BL.bool(), values_BL, 0.0)
