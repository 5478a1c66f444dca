"""The updates of the policy on the samples of a step.

Legend: S sequences, C tokens of the longest completion.
"""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from titan_pt.components.optimizer import guarded_update
from titan_pt.config.schema.grpo import GrpoConfig
from titan_pt.distributed.world import World, sum_over_ranks
from titan_pt.protocols.context import TrainContext
from titan_pt.trainers.grpo.kl import get_kl, importance_weights, log_ratio, masked
from titan_pt.trainers.grpo.losses import PolicyLossConfig, get_policy_loss
from titan_pt.trainers.grpo.packing import PackedBatch, TrainSample, pack
from titan_pt.trainers.grpo.scoring import Scorer

if TYPE_CHECKING:
    from titan_pt.trainers.grpo.distill import TeacherModel


@dataclass
class PolicyBatch:
    """A packed micro-batch with the log-probabilities that do not change during a step."""

    packed: PackedBatch
    old_logprobs_SC: torch.Tensor | None
    """Log-probabilities by the weights that sampled; None until the step's first update, whose forward gives them."""
    ref_logprobs_SC: torch.Tensor | None
    """Log-probabilities by the reference; None without a KL penalty."""


@dataclass(frozen=True)
class Packing:
    """Packs samples of all ranks into this rank's micro-batches."""

    world: World
    seq_len: int
    batch_rows: int
    eos_id: int
    shares_prompts: bool

    def __call__(self, samples: Sequence[TrainSample]) -> list[PackedBatch]:
        packed = pack(
            samples,
            self.world.rank,
            self.world.size,
            seq_len=self.seq_len,
            batch_rows=self.batch_rows,
            eos_id=self.eos_id,
            shares_prompts=self.shares_prompts,
        )
        return [batch.to(self.world.device) for batch in packed]


@dataclass(frozen=True)
class UpdateMetrics:
    """Metrics of all updates of one step, on the device, over all ranks."""

    loss: torch.Tensor
    grad_norm: torch.Tensor
    """Largest norm of an update's gradient."""
    skipped: torch.Tensor
    """1.0 where an update was not finite and so was not applied."""
    entropy: torch.Tensor
    clip_fraction: torch.Tensor
    kl: torch.Tensor
    """KL divergence to the reference, else of the sampling policy to the updated one; per token, in nats."""
    logprob_diff_max: torch.Tensor
    """Largest difference of the engine's and the trainer's log-probabilities, by the same weights."""
    logprob_diff_mean: torch.Tensor
    ratio_max: torch.Tensor
    teacher_kl: torch.Tensor | None
    """Reverse KL divergence to the teacher, per token, in nats; None without one."""


class PolicyUpdate:
    """Updates the policy on the samples of one step."""

    def __init__(
        self, context: TrainContext[GrpoConfig], reference: nn.Module | None, teacher: "TeacherModel | None" = None
    ) -> None:
        config = context.config
        self._context = context
        self._grpo, rollout = config.grpo, config.rollout
        self._loss = get_policy_loss(self._grpo.loss)
        self._kl = get_kl(self._grpo.kl_estimator)
        size = context.tokenizer.vocab_size
        self._scorer = Scorer(context.model, rollout.temperature, size)
        self._reference = None if reference is None else Scorer(reference, rollout.temperature, size)
        self._distill = None
        if teacher:
            from titan_pt.trainers.grpo.distill import Distillation

            self._distill = Distillation(self._scorer, teacher)
        self._packing = build_packing(context, *([teacher.model] if teacher else []))
        self._loss_config = PolicyLossConfig(
            clip_low=self._grpo.clip_low,
            clip_high=self._grpo.clip_high,
            cispo_cap=self._grpo.cispo_cap,
            max_new_tokens=rollout.completion_tokens,
        )

    def __call__(self, minibatches: Sequence[Sequence[TrainSample]], lr: float) -> UpdateMetrics:
        """Make num_iterations updates on each minibatch of samples of all ranks.

        Raises:
            Preempted: between micro-batches, before the first update; the updates of one step are all or none.
        """
        prepared = [self._prepare(samples, is_first=i == 0) for i, samples in enumerate(minibatches)]
        sums: list[torch.Tensor] = []
        largest: list[torch.Tensor] = []
        updates: list[tuple[torch.Tensor, torch.Tensor]] = []
        for _ in range(self._grpo.num_iterations):
            for samples, batches in zip(minibatches, prepared, strict=True):
                loss_config = replace(self._loss_config, **global_counts(samples))
                results = []
                for i, batch in enumerate(batches, 1):
                    sum_over_ranks(self._context.model, last=i == len(batches))
                    results.append(self._backward(batch, loss_config, first=not updates))
                total = self._context.world.sum(torch.stack([part for part, _ in results]).sum(dim=0))
                sums.append(total)
                largest.append(torch.stack([maxima for _, maxima in results]).amax(dim=0))
                updates.append(
                    guarded_update(
                        self._context.model,
                        self._context.optimizer,
                        lr,
                        self._context.config.training.max_norm,
                        total[0],
                        self._context.spikes,
                    )
                )
        return self._metrics(torch.stack(sums), torch.stack(largest).amax(dim=0), updates)

    def again(self, minibatches: Sequence[Sequence[TrainSample]]) -> Iterator[tuple[PackedBatch, None]]:
        """Do the forward and backward of the first pass over the minibatches, and no update; Preempted by a signal."""
        for i, samples in enumerate(minibatches):
            loss_config = replace(self._loss_config, **global_counts(samples))
            batches = self._prepare(samples, is_first=i == 0)
            for number, batch in enumerate(batches, 1):
                self._context.raise_if_preempted()
                sum_over_ranks(self._context.model, last=number == len(batches))
                self._backward(batch, loss_config, first=False)
                yield batch.packed, None

    @torch.no_grad()
    def _prepare(self, samples: Sequence[TrainSample], *, is_first: bool) -> list[PolicyBatch]:
        batches = []
        for packed in self._packing(samples):
            self._context.raise_if_preempted()
            old = None if is_first else self._scorer(packed).logprobs_SC
            reference = self._reference(packed).logprobs_SC if self._reference else None
            batches.append(PolicyBatch(packed, old, reference))
        return batches

    def _backward(
        self, batch: PolicyBatch, config: PolicyLossConfig, *, first: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the gradient of a micro-batch; returns its sums and maxima for `_metrics`."""
        if first:
            self._context.raise_if_preempted()
        packed = batch.packed
        scored = (self._distill or self._scorer)(packed)
        logprobs = scored.logprobs_SC
        if batch.old_logprobs_SC is None:
            batch.old_logprobs_SC = logprobs.detach()
        old = batch.old_logprobs_SC
        mask, count = packed.mask_SC, packed.mask_SC.sum()
        weights = None
        if self._grpo.importance_sampling == "token":
            weights = importance_weights(old, packed.sampler_logprobs_SC, mask, self._grpo.importance_cap)
        loss = self._loss(logprobs, old, packed.advantages_S, mask, config, weights)
        statistics = self._loss.statistics(logprobs, old, packed.advantages_S, mask, config)
        kl_sum = statistics.kl_sum
        if batch.ref_logprobs_SC is not None:
            kl = self._kl(logprobs, batch.ref_logprobs_SC, mask, self._grpo.kl_max_log_ratio)
            loss = loss + self._grpo.kl_coef * self._loss.mean(kl, mask, config)
            kl_sum = masked(kl.detach(), mask).sum()
        teacher_kl_sum = torch.zeros_like(kl_sum)
        if self._distill and scored.teacher_kl_SC is not None:
            loss = loss + self._loss.mean(self._distill.penalty(scored, old), mask, config)
            teacher_kl_sum = masked(scored.teacher_kl_SC.detach(), mask).sum()
        loss.backward()
        difference = log_ratio(old, packed.sampler_logprobs_SC, packed.sampled_SC).abs()
        entropy_sum = masked(scored.entropy_SC, mask).sum()
        values = (loss, count, entropy_sum, statistics.num_clipped, kl_sum, difference.sum(), packed.sampled_SC.sum())
        sums = torch.stack([value.detach().float() for value in (*values, teacher_kl_sum)])
        longest = torch.cat([difference.flatten(), difference.new_zeros(1)]).amax()
        return sums, torch.stack([longest.float(), statistics.ratio_max.float()])

    def _metrics(
        self,
        sums: torch.Tensor,
        largest: torch.Tensor,
        updates: Sequence[tuple[torch.Tensor, torch.Tensor]],
    ) -> UpdateMetrics:
        tokens = sums[:, 1].sum().clamp(min=1)
        entropy, clipped, kl = sums[:, 2:5].sum(dim=0) / tokens
        world_max = self._context.world.max(largest)
        return UpdateMetrics(
            loss=sums[:, 0].mean(),
            grad_norm=torch.stack([norm for norm, _ in updates]).amax(),
            skipped=torch.stack([skipped for _, skipped in updates]).amax(),
            entropy=entropy,
            clip_fraction=clipped,
            kl=kl,
            logprob_diff_max=world_max[0],
            logprob_diff_mean=sums[:, 5].sum() / sums[:, 6].sum().clamp(min=1),
            ratio_max=world_max[1],
            teacher_kl=sums[:, 7].sum() / tokens if self._distill else None,
        )


def global_counts(samples: Sequence[TrainSample]) -> dict[str, int]:
    """Numbers of tokens and sequences that count, over all ranks and micro-batches of one update."""
    kept = [len(sample.scored) for sample in samples if sample.trains]
    return {"num_tokens": sum(kept), "num_sequences": len(kept)}


def build_packing(context: TrainContext[GrpoConfig], *others: nn.Module) -> Packing:
    """The packing of [training]; prompts are shared where the models keep segments of a document apart."""
    training, eos_id = context.config.training, context.tokenizer.eos_id
    shares_prompts = all(map(takes_segments, (context.model, *others)))
    return Packing(context.world, training.seq_len, training.local_batch_size, eos_id, shares_prompts)


def takes_segments(model: nn.Module) -> bool:
    """Whether the model's forward has the argument `segments_BL` (`protocols.model_spec.ModelSpec`)."""
    return "segments_BL" in inspect.signature(model.forward).parameters


@torch.no_grad()
def loglikelihoods(context: TrainContext[GrpoConfig], samples: Sequence[TrainSample]) -> list[float]:
    """Log-likelihood of each sample's completion at temperature 1, on every rank. A collective."""
    scorer = Scorer(context.model, 1.0, context.tokenizer.vocab_size)
    found = torch.zeros(len(samples), device=context.world.device)
    for packed in build_packing(context)(samples):
        context.raise_if_preempted()
        found[packed.numbers_S] = masked(scorer(packed).logprobs_SC, packed.sampled_SC).sum(dim=1)
    return context.world.sum(found).tolist()
