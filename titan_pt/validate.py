"""Loss, perplexity and bits per byte on held-out documents, the same rows every time."""

import itertools
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from titan_pt.components.loss import ChunkedCrossEntropy, build_loss
from titan_pt.data.sources.documents import SkipOptions
from titan_pt.data.sources.opening import open_mixture
from titan_pt.data.stream.batch import IGNORED, MicroBatch, collate
from titan_pt.data.stream.mixture import TokenizedMixture
from titan_pt.data.stream.row import PackedRow, padding_row
from titan_pt.data.stream.stream import Stream
from titan_pt.distributed.world import World
from titan_pt.protocols.context import Step, TrainContext, Validator
from titan_pt.run.log import tracked
from titan_pt.run.signals import until_stopped

logger = logging.getLogger("titan_pt")


@dataclass(frozen=True)
class LossValidator:
    """Validates on fixed rows.

    Every rank runs the same number of micro-batches, because FSDP's forward is a collective: a rank with fewer rows
    gets rows without targets.
    """

    model: nn.Module
    world: World
    batches: Sequence[MicroBatch]
    num_bytes: float
    """UTF-8 bytes of all targets, over all ranks."""
    document_mask: bool
    loss: ChunkedCrossEntropy
    raise_if_preempted: Callable[[], None]

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """val_loss (nats per token), val_perplexity, val_bpb."""
        was_training = self.model.training
        self.model.eval()
        totals = torch.zeros(2, dtype=torch.float64, device=self.world.device)
        for batch in tracked(self.batches, "Validation", "batches", len(self.batches)):
            self.raise_if_preempted()
            batch = batch.to(self.world.device)
            positions = batch.positions_BL if self.document_mask else None
            losses = self.model(batch.tokens_BL, positions, self.loss.head(batch.targets_BL))
            kept = (batch.targets_BL != IGNORED).sum()
            totals += torch.stack([losses.cross_entropy_T.double().sum(), kept.double()])
        self.model.train(was_training)
        loss_sum, num_tokens = self.world.sum(totals).tolist()
        loss = loss_sum / num_tokens
        return {
            "val_loss": loss,
            "val_perplexity": math.exp(min(loss, 700.0)),
            "val_bpb": loss_sum / math.log(2) / self.num_bytes,
        }


def build_validator(context: TrainContext, _step: Step | None = None) -> Validator | None:
    """The validator of `[validation]`, or None where it is off.

    Raises:
        ConfigError: there are no validation documents, or a task cannot be asked.
    """
    config, world = context.config, context.world
    if not config.validation.enable:
        return None
    rows = validation_rows(context)
    size = config.validation.local_batch_size
    rounds = -(-len(rows) // (size * world.size))
    empty = padding_row(config.training.seq_len + 1, context.tokenizer.eos_id)
    own = [*rows[world.rank :: world.size], *[empty] * (rounds * size)][: rounds * size]
    num_bytes = sum(row.num_bytes for row in rows)
    tokens = sum(row.num_targets for row in rows)
    logger.info(f"Validation: {len(rows)} rows, {tokens:,} tokens, {num_bytes:,.0f} bytes, the same each time")
    losses = LossValidator(
        model=context.model,
        world=world,
        batches=[collate(own[i : i + size]) for i in range(0, len(own), size)],
        num_bytes=num_bytes,
        document_mask=config.training.document_mask,
        loss=replace(build_loss(config, world.device), z_loss_coef=0.0),
        raise_if_preempted=context.raise_if_preempted,
    )
    if not (config.validation.tasks or config.validation.sample_prompts):
        return losses
    from titan_pt.evaluation.task_eval import build_task_eval

    return build_task_eval(context, losses)


def validation_rows(context: TrainContext) -> list[PackedRow]:
    """All rows of a validation, whatever the number of ranks.

    Raises:
        ConfigError: on all ranks, when there are none or a document cannot be read.
        Preempted: on all ranks, when one was asked to stop.
    """
    config, own = context.config, context.config.validation.sources
    if own:
        sources = open_mixture(own, config, context.world)
        context.dataloader.keep_contents(sources, "validation.sources ")
        fraction, held_out = 0.0, False
    else:
        sources = list(context.dataloader.mixture.sources)
        fraction, held_out = config.validation.holdout_fraction, True
    once = [replace(s, max_epochs=min(1.0, s.max_epochs or 1.0), listing=None) for s in sources]
    train: TokenizedMixture = context.dataloader.mixture
    known = {source.name for source in once}  # that they end is what they are for
    mixture = replace(
        train,
        sources=once,
        holdout_fraction=fraction,
        held_out=held_out,
        skip=SkipOptions(),
        spent=known,
    )
    limit = None if config.validation.steps < 0 else config.validation.steps * context.run_size.rows
    stream = Stream(mixture, 0, 1, config.training.seq_len)
    rows = context.world.together(lambda: list(itertools.islice(until_stopped(stream), limit)))
    if not any(row.num_bytes for row in rows):
        from titan_pt.data.sources.unreadable import nothing_to_validate_on

        raise nothing_to_validate_on("validation.sources" if own else f"validation.holdout_fraction = {fraction}")
    return rows
