"""A model inside whose forward completions are scored.

Legend: N completion tokens, S sequences, C tokens of the longest completion.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from titan_pt.trainers.grpo.logprobs import TokenLogprobs, logprob_head
from titan_pt.trainers.grpo.packing import PackedBatch


@dataclass(frozen=True)
class Scored:
    """Log-probability and entropy of each completion token."""

    logprobs_SC: torch.Tensor
    """Log-probabilities, with gradient."""
    entropy_SC: torch.Tensor
    """Entropies in nats, without gradient."""
    teacher_kl_SC: torch.Tensor | None = None
    """Divergence from the teacher, with gradient, or of one sample log pi - log q, without; None without a teacher."""


@dataclass(frozen=True)
class Scorer:
    """Scores completions with a sharded model. A collective: every rank makes as many forwards."""

    model: nn.Module
    temperature: float
    num_tokens: int

    def __call__(self, batch: PackedBatch) -> Scored:
        softcap = softcap_of(self.model)
        score = logprob_head(batch.targets_N, temperature=self.temperature, num_tokens=self.num_tokens, softcap=softcap)
        out: TokenLogprobs = run_model(self.model, batch, score)
        return Scored(batch.by_sample(out.logprobs_BL), batch.by_sample(out.entropy_BL))


def softcap_of(model: nn.Module) -> float | None:
    """The soft cap of a model's logits; None where it has none."""
    return getattr(getattr(model, "args", None), "logit_softcap", None)


def run_model(model: nn.Module, batch: PackedBatch, head: Callable[[torch.Tensor, torch.Tensor], Any]) -> Any:
    """head(hidden_ND, weight_VD) inside the model's forward, for the N positions that predict completion tokens."""

    def chosen(hidden_BLD: torch.Tensor, weight_VD: torch.Tensor) -> Any:
        return head(hidden_BLD.flatten(0, 1).index_select(0, batch.where_N), weight_VD)

    segments = {} if batch.segments_BL is None else {"segments_BL": batch.segments_BL}
    return model(batch.tokens_BL, batch.positions_BL, chosen, **segments)
