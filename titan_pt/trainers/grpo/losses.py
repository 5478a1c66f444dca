"""Policy losses of GRPO and its relatives.

A loss is one row of a table: a term for each token, and a mean over tokens or sequences.

    loss = get_policy_loss("dapo")
    total = loss(logprobs_BL, old_logprobs_BL, advantages_B, mask_BL, config)
    total = total + kl_coef * loss.mean(get_kl("k2")(logprobs_BL, ref_logprobs_BL, mask_BL), mask_BL, config)

Notation: r_it = pi / pi_old of token t of sequence i, A_i its advantage, m_it the mask, n_i = sum over t of m_it,
N = sum over i of n_i, B the number of sequences with n_i > 0, sg stop-gradient, clip(r) = r within
[1 - clip_low, 1 + clip_high].

Where pi = pi_old (one update per rollout) every r is 1, and the gradient of every loss is that of plain policy
gradient, -sum over i, t of w_it A_i grad log pi_it: the losses differ in the weight w_it of their mean alone. This
holds for `gspo` too, whose ratio belongs to a whole sequence: its weight is that of `grpo`, 1 / (B n_i).

Masked positions may hold anything, also inf and NaN; it reaches neither values nor gradients. All is computed in
float32 (float64 if the log-probabilities are float64), and nothing waits for the device.

Legend: B sequences, L tokens of a sequence.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from titan_pt.trainers.grpo.kl import MAX_LOG_RATIO, k3, log_ratio, masked

GlobalCount = float | torch.Tensor


@dataclass(frozen=True)
class PolicyLossConfig:
    """Clips and counts of the policy losses; each loss reads only what it needs.

    A mean runs over the global batch of one update: all its micro-batches on all ranks. With the global counts given,
    each call returns its share of the global mean: sum the shares for the value, and sum (not average) the gradients
    over micro-batches and ranks. Without them a call divides by its local counts, which is right for one call alone:
    the average of local means weighs a micro-batch of few tokens like one of many.
    """

    clip_low: float = 0.2
    """Ratios below 1 - clip_low get no gradient where A < 0. 0.2 is DAPO's; `gspo` needs 3e-4."""
    clip_high: float = 0.28
    """Ratios above 1 + clip_high get no gradient where A > 0. 0.28 is DAPO's; `gspo` needs 4e-4."""
    cispo_cap: float = 5.0
    """Largest weight of `cispo`: the cap itself, not its distance to 1. 5 is ScaleRL's."""
    max_new_tokens: int | None = None
    """L_const of `dr_grpo`: the most tokens a completion can have."""
    num_tokens: GlobalCount | None = None
    """Unmasked tokens of the global batch, for token means. None: those of this call. A tensor is not read back."""
    num_sequences: GlobalCount | None = None
    """Sequences of the global batch, for `grpo`, `gspo`, `dr_grpo`. None: those of this call that have a token."""

    def __post_init__(self) -> None:
        for name, least in (("clip_low", 0), ("clip_high", 0), ("cispo_cap", 1), ("max_new_tokens", 1)):
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise ValueError(f"{name} = {value}: want {least} or more")


@dataclass(frozen=True)
class Tokens:
    """Checked input of a loss in the computing type, with zeros where masked."""

    logprobs_BL: torch.Tensor
    log_ratio_BL: torch.Tensor
    """log r, with gradient."""
    advantages_B1: torch.Tensor
    mask_BL: torch.Tensor
    """Tokens that count; boolean."""


@dataclass(frozen=True)
class Terms:
    """A loss's term of each token, before the mean."""

    objective_BL: torch.Tensor
    """Objective of each token, to be maximised."""
    ratio_BL: torch.Tensor
    """Ratio that is clipped."""
    clipped_BL: torch.Tensor
    """Tokens where the clip changed the objective; boolean."""


def token_ratio(tokens: Tokens, config: PolicyLossConfig) -> Terms:
    """min(r_it A_i, clip(r_it) A_i). PPO, arXiv 1707.06347, eq. 7, with DAPO's two clips, arXiv 2503.14476, eq. 8."""
    return _clipped(_exp(tokens.log_ratio_BL), tokens, config)


def sequence_ratio(tokens: Tokens, config: PolicyLossConfig) -> Terms:
    """min(s_i A_i, clip(s_i) A_i) at each token, s_i = exp(1/n_i sum over t of m_it log r_it).

    GSPO, arXiv 2507.18071: all tokens of a sequence are clipped together.
    """
    length_B1 = tokens.mask_BL.sum(dim=1, keepdim=True).clamp(min=1)
    ratio_B1 = _exp(tokens.log_ratio_BL.sum(dim=1, keepdim=True) / length_B1)
    return _clipped(ratio_B1.expand_as(tokens.log_ratio_BL), tokens, config)


def capped_weight(tokens: Tokens, config: PolicyLossConfig) -> Terms:
    """sg(min(r_it, cispo_cap)) A_i log pi_it: the weight is clipped, the gradient never dropped.

    CISPO, MiniMax-M1, arXiv 2506.13585, without a lower bound, as in their runs.
    """
    ratio_BL = _exp(tokens.log_ratio_BL).detach()
    weight_BL = ratio_BL.clamp(max=config.cispo_cap)
    return Terms(weight_BL * tokens.advantages_B1 * tokens.logprobs_BL, ratio_BL, ratio_BL > config.cispo_cap)


def log_probability(tokens: Tokens, config: PolicyLossConfig) -> Terms:
    """A_i log pi_it. REINFORCE with a baseline (Williams 1992), as nanochat's chat_rl.py; pi_old plays no part."""
    objective_BL = tokens.advantages_B1 * tokens.logprobs_BL
    return Terms(objective_BL, _exp(tokens.log_ratio_BL), torch.zeros_like(tokens.mask_BL))


def token_mean(values_BL: torch.Tensor, mask_BL: torch.Tensor, config: PolicyLossConfig) -> torch.Tensor:
    """1/N sum over i, t of m_it x_it: all tokens weigh the same. DAPO, arXiv 2503.14476, eq. 8.

    A group without signal (A = 0) adds nothing to the sum, but its tokens are counted in N unless it was dropped.
    """
    return masked(values_BL, mask_BL).sum() / _count(config.num_tokens, mask_BL.bool().sum())


def sequence_mean(values_BL: torch.Tensor, mask_BL: torch.Tensor, config: PolicyLossConfig) -> torch.Tensor:
    """1/B sum over i of 1/n_i sum over t of m_it x_it: all sequences weigh the same. GRPO, arXiv 2402.03300, eq. 3."""
    mask_BL = mask_BL.bool()
    means_B = masked(values_BL, mask_BL).sum(dim=1) / mask_BL.sum(dim=1).clamp(min=1)
    return means_B.sum() / _count(config.num_sequences, mask_BL.any(dim=1).sum())


def constant_mean(values_BL: torch.Tensor, mask_BL: torch.Tensor, config: PolicyLossConfig) -> torch.Tensor:
    """1/(B L_const) sum over i, t of m_it x_it: no weight depends on a length. Dr. GRPO, arXiv 2503.20783.

    Raises:
        ValueError: max_new_tokens, the L_const, is not set.
    """
    if config.max_new_tokens is None:
        raise ValueError("max_new_tokens is not set: dr_grpo divides by it")
    sequences = _count(config.num_sequences, mask_BL.bool().any(dim=1).sum())
    return masked(values_BL, mask_BL).sum() / (sequences * config.max_new_tokens)


@dataclass(frozen=True)
class PolicyStatistics:
    """Sums over the tokens of one call, on the device; add them over micro-batches and ranks, then divide."""

    num_tokens: torch.Tensor
    """Unmasked tokens."""
    num_clipped: torch.Tensor
    """Tokens whose term the clip changed; all tokens of a clipped sequence for `gspo`."""
    kl_sum: torch.Tensor
    """Sum over tokens of r - 1 - log r, the k3 estimate of KL(pi_old || pi) in nats."""
    ratio_max: torch.Tensor
    """Largest ratio, of a sequence for `gspo`; at most exp(20), 0 without tokens. Take the maximum, not the sum."""

    @property
    def clip_fraction(self) -> torch.Tensor:
        """num_clipped / num_tokens, 0 without tokens."""
        return self.num_clipped / self.num_tokens.clamp(min=1)

    @property
    def approx_kl(self) -> torch.Tensor:
        """kl_sum / num_tokens, 0 without tokens."""
        return self.kl_sum / self.num_tokens.clamp(min=1)


@dataclass(frozen=True)
class PolicyLoss:
    """A policy loss: a term for each token and a mean; call it for the loss."""

    terms: Callable[[Tokens, PolicyLossConfig], Terms]
    mean: Callable[[torch.Tensor, torch.Tensor, PolicyLossConfig], torch.Tensor]
    """(values_BL, mask_BL, config) -> scalar; also the mean for a KL penalty beside this loss."""

    def __call__(
        self,
        logprobs_BL: torch.Tensor,
        old_logprobs_BL: torch.Tensor,
        advantages_B: torch.Tensor,
        mask_BL: torch.Tensor,
        config: PolicyLossConfig,
        weights_BL: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The loss, a scalar to minimise: minus this call's share of the mean of the terms; 0 where nothing counts.

        Args:
            logprobs_BL: log pi of the sampled tokens; the only input that gets a gradient.
            old_logprobs_BL: log pi_old by the trainer, from before the first update on these samples.
            advantages_B: see `group_advantages`.
            mask_BL: boolean or 0/1, the tokens that count. A sequence without any adds nothing.
            config: clips and global counts.
            weights_BL: factors of the terms, see `importance_weights`.
        """
        tokens = _tokens(logprobs_BL, old_logprobs_BL, advantages_B, mask_BL)
        objective_BL = self.terms(tokens, config).objective_BL
        if weights_BL is not None:
            # Masked first: a NaN here would come back as the gradient of `gspo`'s whole sequence.
            objective_BL = objective_BL * masked(weights_BL.detach(), mask_BL).to(objective_BL.dtype)
        return -self.mean(objective_BL, mask_BL, config)

    @torch.no_grad()
    def statistics(
        self,
        logprobs_BL: torch.Tensor,
        old_logprobs_BL: torch.Tensor,
        advantages_B: torch.Tensor,
        mask_BL: torch.Tensor,
        config: PolicyLossConfig,
    ) -> PolicyStatistics:
        """Statistics to log beside the loss; the arguments are those of the loss."""
        tokens = _tokens(logprobs_BL, old_logprobs_BL, advantages_B, mask_BL)
        terms = self.terms(tokens, config)
        log_ratio_BL = tokens.log_ratio_BL.clamp(max=MAX_LOG_RATIO)
        ratio_BL = masked(terms.ratio_BL, tokens.mask_BL)
        return PolicyStatistics(
            num_tokens=tokens.mask_BL.sum(),
            num_clipped=(terms.clipped_BL & tokens.mask_BL).sum(),
            kl_sum=k3(log_ratio_BL).sum(),
            ratio_max=torch.cat([ratio_BL.flatten(), ratio_BL.new_zeros(1)]).amax(),
        )


_LOSSES = {
    "dapo": PolicyLoss(token_ratio, token_mean),
    "grpo": PolicyLoss(token_ratio, sequence_mean),
    "dr_grpo": PolicyLoss(token_ratio, constant_mean),
    "gspo": PolicyLoss(sequence_ratio, sequence_mean),
    "cispo": PolicyLoss(capped_weight, token_mean),
    "reinforce": PolicyLoss(log_probability, token_mean),
    "distill": PolicyLoss(token_ratio, token_mean),  # of the rewards; the teacher's part: distill.py
}


def get_policy_loss(name: str) -> PolicyLoss:
    """The loss (logprobs_BL, old_logprobs_BL, advantages_B, mask_BL, config) -> scalar of this name.

    Raises:
        ValueError: no such loss.
    """
    if name not in _LOSSES:
        raise ValueError(f"loss = {name!r}: allowed are {', '.join(_LOSSES)}")
    return _LOSSES[name]


def _tokens(
    logprobs_BL: torch.Tensor, old_logprobs_BL: torch.Tensor, advantages_B: torch.Tensor, mask_BL: torch.Tensor
) -> Tokens:
    assert logprobs_BL.shape == old_logprobs_BL.shape == mask_BL.shape, "want (B, L) of all three"
    assert advantages_B.shape == logprobs_BL.shape[:1], "want one advantage for each sequence"
    log_ratio_BL = log_ratio(logprobs_BL, old_logprobs_BL, mask_BL)
    return Tokens(
        logprobs_BL=masked(logprobs_BL, mask_BL).to(log_ratio_BL.dtype),
        log_ratio_BL=log_ratio_BL,
        advantages_B1=advantages_B.detach().to(log_ratio_BL.dtype)[:, None],
        mask_BL=mask_BL.bool(),
    )


def _exp(log_ratio: torch.Tensor) -> torch.Tensor:
    return log_ratio.clamp(max=MAX_LOG_RATIO).exp()


def _clipped(ratio_BL: torch.Tensor, tokens: Tokens, config: PolicyLossConfig) -> Terms:
    free_BL = ratio_BL * tokens.advantages_B1
    bound_BL = ratio_BL.clamp(1 - config.clip_low, 1 + config.clip_high) * tokens.advantages_B1
    # Where the ratio is within the bounds both are equal and each gets half of the same gradient.
    return Terms(torch.minimum(free_BL, bound_BL), ratio_BL, bound_BL < free_BL)


def _count(given: GlobalCount | None, in_call: torch.Tensor) -> GlobalCount:
    """The count to divide by, at least 1, so that the mean is 0 where nothing counts."""
    count = in_call if given is None else given
    return count.clamp(min=1) if isinstance(count, torch.Tensor) else max(count, 1)
