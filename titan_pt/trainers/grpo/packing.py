"""Packing of prompts with their completions into rows of training.seq_len tokens.

Legend: B rows, L tokens of a row, N completion tokens of all rows, S samples, C tokens of the longest completion.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from titan_pt.data.stream.batch import IGNORED


@dataclass(frozen=True)
class TrainSample:
    """A prompt and one completion of it, to train on or to score."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Log-probability of each completion token, as the engine drew it."""
    advantage: float = 0.0
    trains: bool = True
    """Whether the completion's tokens count in the loss."""

    @property
    def num_inputs(self) -> int:
        """Tokens that the model reads: the last one is only predicted."""
        return len(self.prompt_ids) + len(self.completion_ids) - 1


@dataclass(frozen=True)
class PackedBatch:
    """Input of one forward. A micro-batch without samples is all padding, since FSDP needs as many on every rank."""

    tokens_BL: torch.Tensor
    positions_BL: torch.Tensor
    where_N: torch.Tensor
    """Positions in the flattened (B, L) where completion tokens are predicted; the others need no output layer."""
    targets_N: torch.Tensor
    """Completion tokens at these positions; a single IGNORED where there are none."""
    index_SC: torch.Tensor
    """Index into N of each completion token."""
    mask_SC: torch.Tensor
    """Tokens that count in the loss; boolean."""
    sampled_SC: torch.Tensor
    """Tokens that exist: a completion may be shorter than C; boolean."""
    sampler_logprobs_SC: torch.Tensor
    """Log-probabilities by the engine that sampled."""
    advantages_S: torch.Tensor
    numbers_S: torch.Tensor
    """Number of each sample in the list that was packed."""

    def to(self, device: torch.device) -> "PackedBatch":
        """A copy of the batch on a device."""
        return PackedBatch(*(tensor.to(device, non_blocking=True) for tensor in vars(self).values()))

    def by_sample(self, values_N: torch.Tensor) -> torch.Tensor:
        """values_SC of the completions' tokens; values where `sampled_SC` is False mean nothing."""
        return values_N[self.index_SC]


def assign(lengths: Sequence[int], num_ranks: int) -> list[list[int]]:
    """Numbers of the samples for each rank: the longest first, each to the rank with the fewest tokens so far."""
    ranks: list[list[int]] = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        rank = loads.index(min(loads))
        ranks[rank].append(i)
        loads[rank] += lengths[i]
    return ranks


def fill_rows(numbers: Sequence[int], lengths: Sequence[int], seq_len: int) -> list[list[int]]:
    """Numbers of the samples in each row of at most seq_len tokens: the longest first, in the first row with room."""
    rows: list[list[int]] = []
    room: list[int] = []
    for i in sorted(numbers, key=lambda i: -lengths[i]):
        row = next((r for r, left in enumerate(room) if left >= lengths[i]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(seq_len)
        rows[row].append(i)
        room[row] -= lengths[i]
    return rows


def pack(
    samples: Sequence[TrainSample], rank: int, num_ranks: int, *, seq_len: int, batch_rows: int, eos_id: int
) -> list[PackedBatch]:
    """Micro-batches of this rank, of `batch_rows` rows each; their number is the same on every rank.

    Args:
        samples: samples of all ranks, in the same order on each.
        eos_id: token that fills the rows.
    """
    lengths = [sample.num_inputs for sample in samples]
    rows_of = [fill_rows(numbers, lengths, seq_len) for numbers in assign(lengths, num_ranks)]
    rows = rows_of[rank]
    rounds = -(-max(map(len, rows_of)) // batch_rows)
    # No more rows than there can be in the largest micro-batch: a small step need not pay for empty ones.
    batch_rows = min(batch_rows, max(map(len, rows_of)))
    return [
        _tensors(samples, rows[i * batch_rows : (i + 1) * batch_rows], batch_rows, seq_len, eos_id)
        for i in range(rounds)
    ]


def _tensors(
    samples: Sequence[TrainSample], rows: Sequence[Sequence[int]], batch_rows: int, seq_len: int, eos_id: int
) -> PackedBatch:
    numbers = [i for row in rows for i in row]
    counts = [len(samples[i].completion_ids) for i in numbers]
    longest = max(counts, default=1)
    tokens = torch.full((batch_rows, seq_len), eos_id)
    positions = torch.zeros(batch_rows, seq_len, dtype=torch.long)
    index = torch.zeros(len(numbers), longest, dtype=torch.long)
    logprobs = torch.zeros(len(numbers), longest)
    where: list[int] = []
    targets: list[int] = []
    s = 0
    for b, row in enumerate(rows):
        start = 0
        for i in row:
            sample, count = samples[i], counts[s]
            end = start + sample.num_inputs
            tokens[b, start:end] = torch.tensor([*sample.prompt_ids, *sample.completion_ids[:-1]])
            positions[b, start:end] = torch.arange(sample.num_inputs)
            index[s, :count] = torch.arange(len(where), len(where) + count)
            logprobs[s, :count] = torch.tensor(sample.logprobs)
            where += range(b * seq_len + end - count, b * seq_len + end)
            targets += sample.completion_ids
            start, s = end, s + 1
        positions[b, start:] = torch.arange(seq_len - start)  # the padding is a separate document
    sampled = torch.arange(longest) < torch.tensor(counts, dtype=torch.long)[:, None]
    trains = torch.tensor([samples[i].trains for i in numbers], dtype=torch.bool)
    return PackedBatch(
        tokens_BL=tokens,
        positions_BL=positions,
        where_N=torch.tensor(where or [0]),
        targets_N=torch.tensor(targets or [IGNORED]),
        index_SC=index,
        mask_SC=sampled & trains[:, None],
        sampled_SC=sampled,
        sampler_logprobs_SC=logprobs,
        advantages_S=torch.tensor([samples[i].advantage for i in numbers], dtype=torch.float32),
        numbers_S=torch.tensor(numbers, dtype=torch.long),
    )
