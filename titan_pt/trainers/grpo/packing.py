"""Packing of prompts and their completions into rows: a prompt once, then every completion of it.

A prompt with its completions is a document. The prompt is the document's segment 0 and each completion a segment of its
own, which sees the prompt and itself; its positions go on from the prompt's. So every completion is read as if it stood
alone behind its prompt, and the prompt is computed once. All first tokens are predicted at the prompt's last position.
A model that knows no segments gets a document for each completion.

Of a conversation the completion holds all that follows the prompt, and only the tokens that the policy drew are scored.

Legend: B rows, L tokens of a row, N scored tokens of all rows, S samples, C scored tokens of the longest completion.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

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
    sampled: tuple[bool, ...] = ()
    """Whether the policy drew each token, where an environment wrote some: these are read, and never scored. Empty: it
    drew all."""

    @property
    def scored(self) -> list[int]:
        """Numbers of the completion's tokens that the policy drew."""
        return [i for i, drawn in enumerate(self.sampled or [True] * len(self.completion_ids)) if drawn]

    @property
    def num_inputs(self) -> int:
        """Tokens that the model reads: the last one is only predicted."""
        return len(self.prompt_ids) + len(self.completion_ids) - 1


@dataclass(frozen=True)
class Document:
    """Samples of one prompt that share a row."""

    numbers: tuple[int, ...]
    """Numbers of the samples in the list that is packed."""
    length: int
    """Tokens that the model reads: the prompt once, and each completion but its last token."""


Row = list[Document]


@dataclass(frozen=True)
class PackedBatch:
    """Input of one forward. A micro-batch without samples is all padding, since FSDP needs as many on every rank."""

    tokens_BL: torch.Tensor
    positions_BL: torch.Tensor
    segments_BL: torch.Tensor | None
    """Number of the completion in its document, from 1; 0 in prompts and padding. None: a document is one sample."""
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
        fields = vars(self).items()
        return replace(self, **{name: x.to(device, non_blocking=True) for name, x in fields if x is not None})

    def by_sample(self, values_N: torch.Tensor) -> torch.Tensor:
        """values_SC of the completions' tokens; values where `sampled_SC` is False mean nothing."""
        return values_N[self.index_SC]


def by_prompt(samples: Sequence[TrainSample], *, shares_prompts: bool) -> list[list[int]]:
    """Numbers of the samples of each prompt; each sample alone where prompts are not shared."""
    groups: dict[object, list[int]] = {}
    for i, sample in enumerate(samples):
        groups.setdefault(sample.prompt_ids if shares_prompts else i, []).append(i)
    return list(groups.values())


def assign(samples: Sequence[TrainSample], groups: Sequence[Sequence[int]], num_ranks: int) -> list[list[list[int]]]:
    """The groups of each rank, in equal shares of tokens; a group is cut where a rank has its share."""
    ranks: list[list[list[int]]] = [[] for _ in range(num_ranks)]
    left = sum(document.length for group in groups for document in cut_documents(samples, group))
    rank, load = 0, 0
    for group in groups:
        own: list[int] = []
        for i in group:
            tokens = samples[i].num_inputs - (len(samples[i].prompt_ids) if own else 0)
            if rank + 1 < num_ranks and load and load + tokens / 2 > (load + left) / (num_ranks - rank):
                left += samples[i].num_inputs - tokens  # the next rank reads the prompt again
                tokens = samples[i].num_inputs
                rank, load, own = rank + 1, 0, []
            if not own:
                ranks[rank].append(own)
            own.append(i)
            load, left = load + tokens, left - tokens
    return ranks


def cut_documents(
    samples: Sequence[TrainSample], group: Sequence[int], seq_len: float = math.inf
) -> Iterator[Document]:
    """The documents of a group; several with the prompt in each where one would be longer than seq_len."""
    prompt = len(samples[group[0]].prompt_ids)
    own: list[int] = []
    length = prompt
    for i in group:
        tokens = samples[i].num_inputs - prompt
        if own and length + tokens > seq_len:
            yield Document(tuple(own), length)
            own, length = [], prompt
        own.append(i)
        length += tokens
    yield Document(tuple(own), length)


def fill_rows(documents: Sequence[Document], seq_len: int, batch_rows: int) -> list[list[Row]]:
    """Micro-batches of rows: the longest documents first, each in the first row with room.

    The rows of a micro-batch are as long as its longest document needs. It holds at most batch_rows x seq_len tokens.
    """
    batches = []
    waiting = sorted(documents, key=lambda document: -document.length)
    while waiting:
        length = row_length(waiting[0].length, seq_len)
        most_rows = batch_rows * seq_len // length
        rows: list[Row] = []
        room: list[int] = []
        later = []
        for document in waiting:
            row = next((r for r, free in enumerate(room) if free >= document.length), len(rows))
            if row == most_rows:
                later.append(document)
                continue
            if row == len(rows):
                rows.append([])
                room.append(length)
            rows[row].append(document)
            room[row] -= document.length
        batches.append(rows)
        waiting = later
    return batches


def row_length(tokens: int, seq_len: int) -> int:
    """Length of rows that hold so many tokens: a multiple of 32, 64 or 128, so that there are few shapes to compile."""
    unit = next((unit for unit in (32, 64) if tokens <= 16 * unit), 128)
    return min(-(-tokens // unit) * unit, seq_len)


def lay_out(
    samples: Sequence[TrainSample], num_ranks: int, *, seq_len: int, batch_rows: int, shares_prompts: bool
) -> list[list[list[Row]]]:
    """The micro-batches of each rank."""
    groups = by_prompt(samples, shares_prompts=shares_prompts)
    return [
        fill_rows([d for group in own for d in cut_documents(samples, group, seq_len)], seq_len, batch_rows)
        for own in assign(samples, groups, num_ranks)
    ]


def pack(
    samples: Sequence[TrainSample],
    rank: int,
    num_ranks: int,
    *,
    seq_len: int,
    batch_rows: int,
    eos_id: int,
    shares_prompts: bool,
) -> list[PackedBatch]:
    """Micro-batches of this rank, of at most batch_rows x seq_len tokens; their number is the same on every rank.

    Args:
        samples: samples of all ranks, in the same order on each.
        eos_id: token that fills the rows.
        shares_prompts: lay a prompt once before its completions, for a model that knows segments.
    """
    layout = lay_out(samples, num_ranks, seq_len=seq_len, batch_rows=batch_rows, shares_prompts=shares_prompts)
    own, rounds = layout[rank], max(map(len, layout))
    return [
        _tensors(samples, rows or [[]], seq_len, eos_id, shares_prompts) for rows in [*own, *[[]] * (rounds - len(own))]
    ]


def _tensors(
    samples: Sequence[TrainSample], rows: Sequence[Row], seq_len: int, eos_id: int, shares_prompts: bool
) -> PackedBatch:
    numbers = [i for row in rows for document in row for i in document.numbers]
    scored = {i: samples[i].scored for i in numbers}
    counts = [len(scored[i]) for i in numbers]
    longest = max(counts, default=1)
    length = row_length(max(1, *(sum(document.length for document in row) for row in rows)), seq_len)
    tokens: list[int] = []
    positions: list[int] = []
    segments: list[int] = []
    where: list[int] = []
    targets: list[int] = []
    for b, row in enumerate(rows, 1):
        for document in row:
            prompt = samples[document.numbers[0]].prompt_ids
            tokens += prompt
            positions += range(len(prompt))
            segments += [0] * len(prompt)
            last = len(tokens) - 1
            for segment, i in enumerate(document.numbers, 1):
                sample = samples[i]
                where += [last if j == 0 else len(tokens) + j - 1 for j in scored[i]]
                targets += [sample.completion_ids[j] for j in scored[i]]
                tokens += sample.completion_ids[:-1]
                positions += range(len(prompt), sample.num_inputs)
                segments += [segment] * (len(sample.completion_ids) - 1)
        padding = b * length - len(tokens)
        tokens += [eos_id] * padding
        positions += range(padding)  # the padding is a separate document
        segments += [0] * padding
    firsts = itertools.accumulate(counts, initial=0)
    index = [
        [*range(first, first + count), *[0] * (longest - count)] for first, count in zip(firsts, counts, strict=False)
    ]
    logprobs = [
        [*(samples[i].logprobs[j] for j in scored[i]), *[0.0] * (longest - count)]
        for i, count in zip(numbers, counts, strict=True)
    ]
    sampled = torch.arange(longest) < torch.tensor(counts, dtype=torch.long)[:, None]
    trains = torch.tensor([samples[i].trains for i in numbers], dtype=torch.bool)
    shape_BL, shape_SC = (len(rows), length), (len(numbers), longest)
    return PackedBatch(
        tokens_BL=torch.tensor(tokens).view(shape_BL),
        positions_BL=torch.tensor(positions).view(shape_BL),
        segments_BL=torch.tensor(segments).view(shape_BL) if shares_prompts else None,
        where_N=torch.tensor(where or [0]),
        targets_N=torch.tensor(targets or [IGNORED]),
        index_SC=torch.tensor(index, dtype=torch.long).view(shape_SC),
        mask_SC=sampled & trains[:, None],
        sampled_SC=sampled,
        sampler_logprobs_SC=torch.tensor(logprobs, dtype=torch.float32).view(shape_SC),
        advantages_S=torch.tensor([samples[i].advantage for i in numbers], dtype=torch.float32),
        numbers_S=torch.tensor(numbers, dtype=torch.long),
    )
