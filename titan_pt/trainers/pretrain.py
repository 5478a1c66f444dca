"""Pretraining: packed text, next-token cross-entropy, one clipped and guarded AdamW update a step."""

import time

import torch
from torch import nn

from titan_pt.components.loss import ChunkedCrossEntropy, TokenLosses, build_loss
from titan_pt.components.lr_scheduler import build_lr_schedulers
from titan_pt.components.optimizer import build_optimizers, guarded_update
from titan_pt.components.tokenizer import Tokenizer, build_tokenizer
from titan_pt.config.resolve.checks import model_args
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.data.stream.batch import IGNORED, MicroBatch
from titan_pt.data.stream.loader import build_dataloader
from titan_pt.distributed.world import World, sum_over_ranks
from titan_pt.protocols.context import Step, StepMetrics, TrainContext, TrainState
from titan_pt.protocols.model_spec import get_model_spec
from titan_pt.protocols.registry import import_attribute
from titan_pt.protocols.trainer_spec import TrainerSpec
from titan_pt.trainers.summary import describe_run
from titan_pt.validate import build_validator

_AGAIN, _DRY_RUN = "titan_pt.trainers.step_again:step_again", "titan_pt.trainers.dry_run:build_dry_run"


def build_model(config: JobConfig, tokenizer: Tokenizer) -> nn.Module:
    """The model of `[model]` on the meta device, with a vocabulary for the tokenizer.

    Raises:
        ConfigError: model.vocab_size is smaller than the tokenizer.
    """
    spec = get_model_spec(config.model.name)
    with torch.device("meta"):
        return spec.build(model_args(config, spec, tokenizer.vocab_size), config)


def parallelize(model: nn.Module, config: JobConfig, world: World) -> nn.Module:
    """Checkpoint, compile and shard the model in place, by the `parallelize` of its model spec; returns it."""
    return get_model_spec(config.model.name).parallelize(model, config, world)


def build_step(context: TrainContext) -> Step:
    """One optimizer update on one global batch."""
    config, world, model, optimizer = context.config, context.world, context.model, context.optimizer
    loss_function = build_loss(config, world.device)
    names = [source.name for source in config.data.sources]

    def step(state: TrainState) -> StepMetrics | None:
        before = getattr(context.dataloader, "committed", None)
        waited = time.perf_counter()
        batch = context.dataloader.next_batch()
        waited = time.perf_counter() - waited
        if batch is None:
            return None
        num_targets = max(1, batch.num_targets)  # a batch of questions alone has none
        totals = torch.zeros(1 + 2 * len(names), device=world.device)
        for i, micro_batch in enumerate(batch.micro_batches, 1):
            context.raise_if_preempted()
            sum_over_ranks(model, last=i == len(batch.micro_batches))
            micro_batch = micro_batch.to(world.device)
            losses = forward(model, micro_batch, loss_function, config.training.document_mask)
            # Gradients are summed over micro-batches and ranks: dividing by the global count makes them a mean.
            (losses.total / num_targets).backward()
            totals += sum_by_source(losses, micro_batch, len(names))
        totals = world.sum(totals)
        loss = totals[0] / num_targets
        lr = context.schedule(state.step + 1)
        grad_norm, skipped = guarded_update(model, optimizer, lr, config.training.max_norm, loss, context.spikes)
        context.dataloader.commit(batch)
        # A source without tokens in this step has no loss: 0 / 0 is NaN, and the log leaves it out.
        per_source = totals[1 : 1 + len(names)] / totals[1 + len(names) :]
        left_out = {"skipped_documents": batch.num_skipped, "lost_documents": batch.num_lost}
        return StepMetrics(
            loss=loss,
            grad_norm=grad_norm,
            skipped=skipped,
            lr=lr,
            tokens=batch.num_tokens,
            trained_tokens=batch.num_targets,
            data_seconds=waited,
            documents=batch.documents,
            extra={f"source/{name}/loss": value for name, value in zip(names, per_source, strict=True)}
            | {key: float(count) for key, count in left_out.items() if count},
            again=lambda: import_attribute(_AGAIN)(context, loss_function, before, num_targets),
        )

    return step


def forward(
    model: nn.Module, batch: MicroBatch, loss_function: ChunkedCrossEntropy, document_mask: bool
) -> TokenLosses:
    """Compute the loss of the model on one micro-batch."""
    positions = batch.positions_BL if document_mask else None
    return model(batch.tokens_BL, positions, loss_function.head(batch.targets_BL))


def sum_by_source(losses: TokenLosses, batch: MicroBatch, num_sources: int) -> torch.Tensor:
    """[all cross-entropies, then of each source, then the tokens of each source]."""
    kept_T = (batch.targets_BL != IGNORED).flatten().to(losses.cross_entropy_T.dtype)
    sums = torch.zeros(2, num_sources, device=kept_T.device)
    sums.index_add_(1, batch.sources_BL.flatten(), torch.stack([losses.cross_entropy_T, kept_T]))
    return torch.cat([losses.cross_entropy_T.sum()[None], sums.flatten()])


SPEC = TrainerSpec(
    name="pretrain",
    build_tokenizer=lambda config: build_tokenizer(config.tokenizer),
    build_model=build_model,
    parallelize=parallelize,
    build_optimizers=build_optimizers,
    build_lr_schedulers=build_lr_schedulers,
    build_dataloader=build_dataloader,
    describe=describe_run,
    build_step=build_step,
    build_validator=build_validator,
    build_dry_run=lambda spec, context: import_attribute(_DRY_RUN)(spec, context),
)

__all__ = ["SPEC", "build_step"]
