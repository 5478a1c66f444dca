"""Synthetic rows for a dry run: right in shape and type, without a source to read."""

import torch

from titan_pt.config.run_size import RunSize
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.data.stream.batch import MicroBatch, StepBatch


class SyntheticBatches:
    """Endless global batches of one micro-batch of zeros each."""

    def __init__(self, config: JobConfig, run_size: RunSize) -> None:
        self._shape = run_size.local_rows, config.training.seq_len
        self._tokens = run_size.tokens_per_step

    def next_batch(self) -> StepBatch:
        """A batch whose rows are one document each."""
        zeros_BL = torch.zeros(self._shape, dtype=torch.long)
        positions_BL = torch.arange(self._shape[1]).expand(self._shape)
        micro_batch = MicroBatch(zeros_BL, zeros_BL.clone(), positions_BL, zeros_BL.clone())
        return StepBatch((micro_batch,), self._tokens, self._tokens, 0, 0, (), {})

    def commit(self, batch: StepBatch) -> None:
        """Do nothing: there is no state."""
