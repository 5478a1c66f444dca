"""Packed rows as tensors: micro-batches, and one rank's share of a global batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from titan_pt.components.loss import IGNORED
from titan_pt.data.stream.row import PackedRow
from titan_pt.data.stream.state import ResumePoint


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one forward, on the CPU or the device."""

    tokens_BL: torch.Tensor
    targets_BL: torch.Tensor
    """The next token of each position; IGNORED where it has no loss."""
    positions_BL: torch.Tensor
    """Position in the document. Off the host the tensor has `num_documents`, at least as many as there are."""
    sources_BL: torch.Tensor
    """Number of each target's source in the mixture."""

    def to(self, device: torch.device) -> "MicroBatch":
        """A copy on a device; does not wait for the copy."""
        moved = MicroBatch(*(tensor.to(device, non_blocking=True) for tensor in vars(self).values()))
        if device.type != self.positions_BL.device.type:  # what the device knows too, but to ask it is to wait for it
            starts = int((self.positions_BL[:, 1:] == 0).sum()) + len(self.positions_BL)
            # A power of two: where the whole model is compiled, each number is another graph.
            moved.positions_BL.num_documents = 1 << (starts - 1).bit_length()  # type: ignore[attr-defined]
        return moved


@dataclass(frozen=True)
class StepBatch:
    """This rank's share of one global batch. Counts are this rank's until `with_counts` makes them those of all."""

    micro_batches: tuple[MicroBatch, ...]
    num_tokens: int
    """Tokens that are predicted."""
    num_targets: int
    """Tokens that have a loss; question tokens of fine-tuning have none."""
    num_skipped: int
    """Documents that were left out since the start of the run."""
    num_lost: int
    """Documents of row groups that were given up since the start of the run."""
    documents: tuple[str, ...]
    """Ids of the documents in the rows."""
    points: Mapping[int, ResumePoint]
    """State of each of this rank's streams behind this batch, by its number."""

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """The four counts that are summed over the ranks."""
        return self.num_tokens, self.num_targets, self.num_skipped, self.num_lost

    def with_counts(self, num_tokens: int, num_targets: int, num_skipped: int, num_lost: int) -> "StepBatch":
        """A copy with the sums over all ranks."""
        return replace(self, num_tokens=num_tokens, num_targets=num_targets, num_skipped=num_skipped, num_lost=num_lost)


def collate(rows: Sequence[PackedRow], pin: bool = False) -> MicroBatch:
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


def collate_step(
    rows: Sequence[PackedRow], points: Mapping[int, ResumePoint], local_batch_size: int, pin: bool
) -> StepBatch:
    """A rank's rows of one global batch as micro-batches of `local_batch_size` rows."""
    chunks = [rows[i : i + local_batch_size] for i in range(0, len(rows), local_batch_size)]
    states = [point.state for point in points.values()]
    return StepBatch(
        micro_batches=tuple(collate(chunk, pin) for chunk in chunks),
        num_tokens=sum(max(0, row.num_tokens - 1) for row in rows),
        num_targets=sum(row.num_targets for row in rows),
        num_skipped=sum(sum(state.skipped) for state in states),
        num_lost=sum(sum(state.lost) for state in states),
        documents=tuple(dict.fromkeys(document for row in rows for document in row.documents)),
        points=points,
    )
