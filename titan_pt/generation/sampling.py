"""Sampling of the next token of many rows at once, without a wait for the device.

Legend: R rows, V vocabulary, C parts of it, S tokens of a part.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from titan_pt.config.schema.grpo import RolloutConfig
from titan_pt.config.schema.sampling import SAMPLING_RANGES
from titan_pt.models.keyed_noise import MASK, mix

Draws = tuple[torch.Tensor, torch.Tensor]

# The largest part of the vocabulary that is searched at once: about the square root of usual sizes.
_PART = 256
_BELOW_ONE = 1.0 - 2.0**-53
# Probabilities are added up as integers: exact, and a cumulative sum of floats has no deterministic form on CUDA.
_UNIT = 2.0**52


@dataclass(frozen=True)
class Sampling:
    """Settings of sampling; a ValueError names one that is out of range."""

    max_new_tokens: int
    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest token."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the likeliest tokens until their probability reaches p."""
    seed: int = 0
    step: int = 0
    """Training step; the same prompt gets other noise at another step."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if problem := SAMPLING_RANGES[name].problem(value):
                raise ValueError(f"rollout.{name} = {value}: {problem}")


def rollout_sampling(config: RolloutConfig, step: int) -> Sampling:
    """The sampling settings of `[rollout]`, with the noise of a training step."""
    rollout = config.rollout
    return Sampling(
        rollout.max_new_tokens,
        temperature=rollout.temperature,
        top_k=rollout.top_k,
        top_p=rollout.top_p,
        seed=config.debug.seed,
        step=step,
    )


def uniform(keys_R: torch.Tensor, positions_R: torch.Tensor) -> torch.Tensor:
    """uniform_R in (0, 1), each a function of (key, position) alone: neither order, batch nor device change it.

    Two rounds of the 32-bit finaliser of MurmurHash3, in int64 so that every device computes the same.
    """
    low = mix(mix(keys_R & MASK) ^ (positions_R & MASK))
    high = mix(low ^ mix(keys_R >> 32 & MASK))
    return (high.double() + 0.5) / 2**32


def invert_softmax(logits_RV: torch.Tensor, noise_R: torch.Tensor) -> Draws:
    """Draw (choice_R, probability_R) by the noise; see `sample`."""
    probabilities_RV = torch.softmax(logits_RV, dim=-1)
    choice_R1 = _invert(probabilities_RV, noise_R[:, None])
    return choice_R1[:, 0], probabilities_RV.gather(-1, choice_R1)[:, 0]


def sample(
    logits_RV: torch.Tensor,
    noise_R: torch.Tensor,
    sampling: Sampling,
    invert: Callable[[torch.Tensor, torch.Tensor], Draws] = invert_softmax,
) -> Draws:
    """Draw (token_R, logprob_R) by inverting the cumulative distribution, in the order of token ids, at `noise_R`.

    The log-probability is under the distribution that was drawn from: after temperature, top-k and top-p. Greedy
    decoding gives that of the model itself. Logits that are not finite give a log-probability of NaN, which the engine
    takes for an error; -inf alone leaves a token out.

    Args:
        invert: `invert_softmax`, or a compiled form of it.
    """
    if sampling.temperature == 0.0:
        logprobs_RV = torch.log_softmax(logits_RV, dim=-1)
        token_R1 = logprobs_RV.argmax(dim=-1, keepdim=True)
        return token_R1[:, 0], logprobs_RV.gather(-1, token_R1)[:, 0]
    ids_RV = None
    if 0 < sampling.top_k < logits_RV.shape[-1]:
        # In the order of ids: that of the logits would change with their rounding, and the draw with it.
        ids_RV = logits_RV.topk(sampling.top_k, dim=-1, sorted=False).indices.sort(dim=-1).values
        logits_RV = logits_RV.gather(-1, ids_RV)
    if sampling.temperature != 1.0:
        logits_RV = logits_RV / sampling.temperature
    if sampling.top_p < 1.0:
        logits_RV = _nucleus(logits_RV, sampling.top_p)
    choice_R, probability_R = invert(logits_RV, noise_R)
    token_R = choice_R if ids_RV is None else ids_RV.gather(-1, choice_R[:, None])[:, 0]
    return torch.where(probability_R > 0.0, token_R, 0), probability_R.log()


def _nucleus(logits_RV: torch.Tensor, top_p: float) -> torch.Tensor:
    """Logits of the likeliest tokens whose probabilities reach p (arXiv 1904.09751); the others are -inf."""
    sorted_RV, order_RV = logits_RV.sort(dim=-1, descending=True, stable=True)
    parts_RV = _as_integers(torch.softmax(sorted_RV, dim=-1))
    # A token stays if those before it do not reach p: the first one always does.
    dropped_RV = parts_RV.cumsum(dim=-1) - parts_RV >= int(top_p * _UNIT)
    return logits_RV.masked_fill(dropped_RV.scatter(-1, order_RV, dropped_RV), float("-inf"))


def _invert(weights_RV: torch.Tensor, noise_R1: torch.Tensor) -> torch.Tensor:
    """Draw choice_R1 in proportion to the weights: first a part of the vocabulary, then a token of that part.

    A cumulative sum over the whole vocabulary, in the float64 that it needs, would take longer than the softmax.
    """
    size = math.gcd(weights_RV.shape[-1], _PART)
    parts_RCS = weights_RV.unflatten(-1, (-1, size))
    part_R1, rest_R1 = _search(parts_RCS.sum(dim=-1), noise_R1)
    part_RS = parts_RCS.gather(1, part_R1[:, :, None].expand(-1, -1, size))[:, 0]
    return part_R1 * size + _search(part_RS, rest_R1)[0]


def _search(weights_RC: torch.Tensor, noise_R1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(choice_R1, position in [0, 1) of the noise within the weight of the choice). A weight of 0 is never chosen."""
    weights_RC = _as_integers(weights_RC)
    cumulative_RC = weights_RC.cumsum(dim=-1)
    # Below the last sum, so that the draw is always found; only NaN is not.
    target_R1 = (noise_R1 * cumulative_RC[:, -1:].double()).long()
    choice_R1 = torch.searchsorted(cumulative_RC, target_R1, right=True).clamp(max=weights_RC.shape[-1] - 1)
    weight_R1 = weights_RC.gather(-1, choice_R1)
    rest_R1 = (target_R1 - (cumulative_RC.gather(-1, choice_R1) - weight_R1)).double() / weight_R1
    return choice_R1, rest_R1.clamp(0.0, _BELOW_ONE)


def _as_integers(probabilities_RC: torch.Tensor) -> torch.Tensor:
    """Probabilities as int64, in units of 2^-52; nothing is lost of a float32 of 2^-29 or more."""
    return (probabilities_RC.double() * _UNIT).long()
