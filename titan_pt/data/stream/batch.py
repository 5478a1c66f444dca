"""Packed rows as tensors."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from titan_pt.components.loss import IGNORED
from titan_pt.data.stream.stream import Row


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one forward, on the CPU or the device."""

    tokens_BL: torch.Tensor
    targets_BL: torch.Tensor
    """The next token of each; IGNORED where there is none, or it is not learnt."""
    positions_BL: torch.Tensor
    """Position in the document."""
    sources_BL: torch.Tensor
    """Number of each target's source in the mixture."""

    def to(self, device: torch.device) -> "MicroBatch":
        """The same on a device; does not wait for the copy."""
        return MicroBatch(*(tensor.to(device, non_blocking=True) for tensor in vars(self).values()))


@dataclass(frozen=True)
class StepBatch:
    """This rank's share of one global batch."""

    micro_batches: tuple[MicroBatch, ...]
    num_tokens: int
    """Tokens that are predicted: on this rank while the batch is prepared, on all ranks once it is handed out."""
    num_targets: int
    """Those of them that are learnt; counted likewise."""
    num_skipped: int
    """Documents that were left out since the start of the run; counted likewise."""
    num_lost: int
    """Documents of row groups that were given up since the start of the run; counted likewise."""
    documents: tuple[str, ...]
    """Ids of the documents in the rows."""
    state: dict[str, Any]
    """The loader's state after this batch."""

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """What is to be summed over the ranks."""
        return self.num_tokens, self.num_targets, self.num_skipped, self.num_lost

    def with_counts(self, num_tokens: int, num_targets: int, num_skipped: int, num_lost: int) -> "StepBatch":
        """The same with the sums over the ranks."""
        return replace(self, num_tokens=num_tokens, num_targets=num_targets, num_skipped=num_skipped, num_lost=num_lost)


def collate(rows: Sequence[Row], pin: bool = False) -> MicroBatch:
    """Rows of seq_len + 1 tokens as inputs and targets of seq_len."""
    tokens = np.stack([row.tokens for row in rows])
    targets = tokens[:, 1:].copy()
    targets[~np.stack([row.targets[1:] for row in rows])] = IGNORED
    arrays = (
        tokens[:, :-1],
        targets,
        np.stack([row.positions[:-1] for row in rows]),
        np.stack([row.sources[1:] for row in rows]),
    )
    tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
    return MicroBatch(*(tensor.pin_memory() if pin else tensor for tensor in tensors))
