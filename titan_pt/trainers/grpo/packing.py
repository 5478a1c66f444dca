"""Prompts with their completions, packed into rows of training.seq_len by token budget.

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
    """Of the completion's tokens, as the engine drew them."""
    advantage: float = 0.0
    trains: bool = True
    """Whether its tokens count in the loss."""

    @property
    def num_inputs(self) -> int:
        """Tokens that the model reads: the last one is only predicted."""
        return len(self.prompt_ids) + len(self.completion_ids) - 1


@dataclass(frozen=True)
class PackedBatch:
    """One forward, on the device. A micro-batch without samples is all padding: FSDP needs it run all the same."""

    tokens_BL: torch.Tensor
    positions_BL: torch.Tensor
    where_N: torch.Tensor
    """Where completion tokens are predicted, in the flattened (B, L): prompts and padding need no output layer."""
    targets_N: torch.Tensor
    """These tokens; one that is IGNORED where there are none."""
    index_SC: torch.Tensor
    """Which of the N each token of a completion is."""
    mask_SC: torch.Tensor
    """Boolean: the tokens that count."""
    sampled_SC: torch.Tensor
    """Boolean: the tokens there are."""
    sampler_logprobs_SC: torch.Tensor
    advantages_S: torch.Tensor
    numbers_S: torch.Tensor
    """Which of the samples that were packed."""

    def to(self, device: torch.device) -> "PackedBatch":
        """The same on a device."""
        return PackedBatch(*(tensor.to(device, non_blocking=True) for tensor in vars(self).values()))

    def by_sample(self, values_N: torch.Tensor) -> torch.Tensor:
        """values_SC of the completions' tokens; what stands where there is no token is masked by `sampled_SC`."""
        return values_N[self.index_SC]


def assign(lengths: Sequence[int], num_ranks: int) -> list[list[int]]:
    """Who takes which sample: the longest first, each to the rank with the fewest tokens so far."""
    ranks: list[list[int]] = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        rank = loads.index(min(loads))
        ranks[rank].append(i)
        loads[rank] += lengths[i]
    return ranks


def fill_rows(numbers: Sequence[int], lengths: Sequence[int], seq_len: int) -> list[list[int]]:
    """Rows of at most seq_len tokens: the longest sample first, each in the first row that has room."""
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
    """This rank's micro-batches of `batch_rows` rows; their number is the same on every rank.

    Args:
        samples: of all ranks, in the same order on each.
        eos_id: fills the rows.
    """
    lengths = [sample.num_inputs for sample in samples]
    rows_of = [fill_rows(own, lengths, seq_len) for own in assign(lengths, num_ranks)]
    own = rows_of[rank]
    rounds = max(-(-len(rows) // batch_rows) for rows in rows_of)
    # No more rows than there can be in the largest micro-batch: a small step need not pay for empty ones.
    batch_rows = min(batch_rows, max(len(rows) for rows in rows_of))
    return [
        _tensors(samples, own[i * batch_rows : (i + 1) * batch_rows], batch_rows, seq_len, eos_id)
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
        positions[b, start:] = torch.arange(seq_len - start)  # the padding is a document of its own
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
