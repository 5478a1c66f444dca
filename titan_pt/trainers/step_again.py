"""The batch of a pretraining step once more, for the black box of a bad step; imported where there is one."""

from collections.abc import Iterator, Mapping

import torch

from titan_pt.components.loss import ChunkedCrossEntropy
from titan_pt.data.stream.batch import MicroBatch, StepBatch, collate_step
from titan_pt.data.stream.loader import DataLoader
from titan_pt.data.stream.resuming import resume
from titan_pt.data.stream.row import padding_row
from titan_pt.data.stream.state import ResumePoint
from titan_pt.data.stream.steps import make_steps
from titan_pt.data.stream.stream import Stream
from titan_pt.distributed.world import sum_over_ranks
from titan_pt.protocols.context import TrainContext
from titan_pt.trainers.pretrain import forward


def step_again(
    context: TrainContext, loss_function: ChunkedCrossEntropy, before: Mapping[int, ResumePoint], num_targets: int
) -> Iterator[tuple[MicroBatch, torch.Tensor]]:
    """Do the forward and backward of a step's batch, and no update; yields each micro-batch with its tokens' losses.

    Args:
        before: where the streams were before the batch.
        num_targets: targets of the batch over all ranks.

    Raises:
        Preempted: a signal came.
    """
    batch = context.world.together(lambda: batch_again(context, before))
    for i, micro_batch in enumerate(batch.micro_batches, 1):
        context.raise_if_preempted()
        sum_over_ranks(context.model, last=i == len(batch.micro_batches))
        on_device = micro_batch.to(context.world.device)
        losses = forward(context.model, on_device, loss_function, context.config.training.document_mask)
        (losses.total / num_targets).backward()
        yield micro_batch, losses.cross_entropy_T


def batch_again(context: TrainContext, before: Mapping[int, ResumePoint]) -> StepBatch:
    """This rank's batch behind a position of its streams; the loader itself does not move.

    Raises:
        ConfigError: the documents read differently now.
    """
    loader: DataLoader = context.dataloader
    training, num_streams = context.config.training, context.run_size.num_streams
    streams = {s: Stream(loader.mixture, s, num_streams, training.seq_len) for s in before}
    for s, stream in streams.items():
        resume(stream, before[s])
    step = next(make_steps(streams, loader.row_streams()))
    padding = padding_row(training.seq_len + 1, context.tokenizer.eos_id)
    return collate_step([row or padding for row in step.rows], step.points, training.local_batch_size, pin=False)
