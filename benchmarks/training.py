"""A step function of titan_pt on fixed random tokens, for the benchmarks."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from titan_pt.build import build_context
from titan_pt.config import load_config
from titan_pt.data.stream.batch import MicroBatch, StepBatch
from titan_pt.distributed.init import materialize
from titan_pt.distributed.world import start_world
from titan_pt.planner.sized_tokenizer import SizedTokenizer, tokenizer_size
from titan_pt.protocols.context import StepMetrics, TrainContext, TrainState
from titan_pt.protocols.trainer_spec import get_trainer_spec
from titan_pt.run.run_folder import run_folder


class FixedBatches:
    """The same micro-batch of random tokens at each step."""

    def __init__(self, rows: int, length: int, vocab_size: int) -> None:
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(0, vocab_size, (rows, length + 1), generator=generator)
        positions = torch.arange(length).expand(rows, length)
        sources = torch.zeros(rows, length, dtype=torch.long)
        self._batch = MicroBatch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), positions, sources)

    def next_batch(self) -> StepBatch:
        """The batch."""
        count = self._batch.tokens_BL.numel()
        return StepBatch((self._batch,), count, count, 0, 0, (), {})

    def commit(self, batch: StepBatch) -> None:
        """Do nothing: there is no state."""


def build_step(flags: list[str]) -> tuple[Callable[[], StepMetrics], TrainContext[Any]]:
    """A step of the pretraining that the flags ask for, on fixed tokens."""
    config = load_config(['--data.sources=[{name="arithmetic"}]', *flags])
    spec, tokenizer = get_trainer_spec(config.job.trainer), SizedTokenizer(tokenizer_size(config))
    context = build_context(
        spec,
        config,
        start_world(config, run_folder(config)),
        tokenizer,
        spec.build_model(config, tokenizer),
        spec.plan_run_size(config, 1),
        materialize=materialize,
        raise_if_preempted=lambda: None,
        reads_data=False,
    )
    training = config.training
    batches = FixedBatches(training.local_batch_size, training.seq_len, tokenizer.vocab_size)
    step, state = spec.build_step(dataclasses.replace(context, dataloader=batches)), TrainState()

    def one() -> StepMetrics:
        metrics = step(state)
        assert metrics is not None
        float(metrics.loss)  # waits for a device
        state.step += 1
        return metrics

    return one, context
