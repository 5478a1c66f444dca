"""Rows without a source, for a dry run: right in shape and type, and nothing to read."""

import torch

from titan_pt.config.run_size import RunSize
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.data.stream.batch import MicroBatch, StepBatch


class SyntheticBatches:
    """One micro-batch as each global batch."""

    def __init__(self, config: JobConfig, run_size: RunSize) -> None:
        self._shape = config.training.local_batch_size, config.training.seq_len
        self._tokens = run_size.tokens_per_step

    def next_batch(self) -> StepBatch:
        """Whole rows of one document each."""
        zeros_BL = torch.zeros(self._shape, dtype=torch.long)
        positions_BL = torch.arange(self._shape[1]).expand(self._shape)
        micro_batch = MicroBatch(zeros_BL, zeros_BL.clone(), positions_BL, zeros_BL.clone())
        return StepBatch((micro_batch,), self._tokens, self._tokens, 0, 0, (), {})

    def commit(self, batch: StepBatch) -> None:
        """Nothing to remember."""
