"""Packed rows hold every sample once, and score as if each stood alone."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounter

from titan_pt.data.stream.batch import IGNORED
from titan_pt.models.transformer import Transformer, TransformerArgs
from titan_pt.trainers.grpo.packing import PackedBatch, TrainSample, lay_out, pack, row_length
from titan_pt.trainers.grpo.policy import Scorer

ARGS = TransformerArgs(
    hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16, intermediate_size=48, vocab_size=40,
    num_tokens=37, init_std=0.3,
)  # fmt: skip
SEQ_LEN, EOS = 24, 0
GROUPS = st.lists(
    st.tuples(st.integers(1, 12), st.lists(st.integers(1, 12), min_size=1, max_size=6)), min_size=1, max_size=8
)


def make_samples(groups: list[tuple[int, list[int]]]) -> list[TrainSample]:
    """Samples of prompts, of (tokens of the prompt, tokens of each completion)."""
    generator = torch.Generator().manual_seed(len(groups))

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(1, 37, (count,), generator=generator).tolist())

    prompts = [(g, *tokens(prompt - 1)) for g, (prompt, _) in enumerate(groups, 1)]
    pairs = [(prompt, count) for prompt, (_, answers) in zip(prompts, groups, strict=True) for count in answers]
    return [
        TrainSample(prompt, tokens(count), tuple(-0.1 * t for t in range(count)), i / 7, trains=i % 3 != 2)
        for i, (prompt, count) in enumerate(pairs)
    ]


def packed_of(
    samples: list[TrainSample], rank: int = 0, num_ranks: int = 1, rows: int = 2, *, shares_prompts: bool = True
) -> list[PackedBatch]:
    return pack(samples, rank, num_ranks, seq_len=SEQ_LEN, batch_rows=rows, eos_id=EOS, shares_prompts=shares_prompts)


@settings(max_examples=60, deadline=None)
@given(groups=GROUPS, num_ranks=st.integers(1, 4), rows=st.integers(1, 3), shares_prompts=st.booleans())
def test_samples_are_packed_once_over_all_ranks(
    groups: list[tuple[int, list[int]]], num_ranks: int, rows: int, shares_prompts: bool
) -> None:
    samples = make_samples(groups)
    ranks = [packed_of(samples, rank, num_ranks, rows, shares_prompts=shares_prompts) for rank in range(num_ranks)]
    assert len({len(batches) for batches in ranks}) == 1, "FSDP's forward is a collective"
    assert all(batch.tokens_BL.numel() <= rows * SEQ_LEN for batches in ranks for batch in batches)
    seen = sorted(number for batches in ranks for batch in batches for number in batch.numbers_S.tolist())
    assert seen == list(range(len(samples)))
    for batch in (batch for batches in ranks for batch in batches):
        assert (batch.segments_BL is not None) == shares_prompts
        for s, number in enumerate(batch.numbers_S.tolist()):
            sample, count = samples[number], len(samples[number].completion_ids)
            own = batch.index_SC[s, :count]
            where = batch.where_N[own]
            assert tuple(batch.targets_N[own].tolist()) == sample.completion_ids
            last_of_prompt = batch.tokens_BL.flatten()[where[0]]
            assert last_of_prompt == sample.prompt_ids[-1]
            assert batch.positions_BL.flatten()[where].tolist() == [
                len(sample.prompt_ids) - 1 + t for t in range(count)
            ]
            assert batch.sampled_SC[s].sum() == count
            assert batch.mask_SC[s].sum() == (count if sample.trains else 0)
            assert torch.allclose(batch.sampler_logprobs_SC[s, :count], torch.tensor(sample.logprobs))
        assert (batch.targets_N != IGNORED).sum() == batch.sampled_SC.sum(), "prompts are read, not predicted"


def _tokens_of(samples: list[TrainSample], numbers: list[int]) -> int:
    """What a rank reads of these samples, each prompt once."""
    own = [samples[number] for number in numbers]
    answers = sum(sample.num_inputs - len(sample.prompt_ids) for sample in own)
    return answers + sum(map(len, {sample.prompt_ids for sample in own}))


@settings(max_examples=60, deadline=None)
@given(groups=GROUPS, num_ranks=st.integers(1, 8))
@example(groups=[(1, [1]), (2, [12, 6]), (9, [1, 8, 9]), (10, [6, 11, 7, 10, 7, 10])], num_ranks=6)
def test_loads_are_even_and_a_prompt_is_read_as_seldom_as_can_be(
    groups: list[tuple[int, list[int]]], num_ranks: int
) -> None:
    samples = make_samples(groups)
    layout = lay_out(samples, num_ranks, seq_len=SEQ_LEN, batch_rows=2, shares_prompts=True)
    documents = [[d for rows in batches for row in rows for d in row] for batches in layout]
    loads = [sum(document.length for document in own) for own in documents]
    # Shares are equal before rows are full: there a prompt is read once more.
    uncut = [_tokens_of(samples, [number for document in own for number in document.numbers]) for own in documents]
    assert max(uncut) <= sum(uncut) / num_ranks + 2 * max(sample.num_inputs for sample in samples)
    for batches, load in zip(layout, loads, strict=True):
        used = sum(bool(row) for rows in batches for row in rows)
        assert used <= 2 * load / SEQ_LEN + 1, "two half-empty rows would have been one"
        for rows in batches:
            assert max(sum(document.length for document in row) for row in rows) <= row_length(
                max(document.length for row in rows for document in row), SEQ_LEN
            )
    total = sum(prompt + sum(answers) - len(answers) for prompt, answers in groups)
    if num_ranks == 1 and all(prompt + sum(answers) - len(answers) <= SEQ_LEN for prompt, answers in groups):
        assert sum(loads) == total and sum(map(len, documents)) == len(groups)


def test_rows_are_as_long_as_they_need_and_of_few_lengths() -> None:
    lengths = [row_length(tokens, 2048) for tokens in range(1, 2049)]
    assert all(tokens <= length < tokens + max(32, tokens / 8) for tokens, length in enumerate(lengths, 1))
    assert len(set(lengths)) <= 32 and row_length(33, 40) == 40
    short, long = make_samples([(4, [3])]), make_samples([(4, [3]), (300, [9])])
    batches = [pack(each, 0, 1, seq_len=512, batch_rows=4, eos_id=EOS, shares_prompts=True) for each in (short, long)]
    assert [tuple(batch.tokens_BL.shape) for (batch,) in batches] == [(1, 32), (1, 320)]


def test_rows_of_all_lengths_share_few_graphs() -> None:
    model = Transformer(ARGS, document_mask=True)
    model.init_weights(0)
    counter = CompileCounter()
    for block in model.layers:
        block.compile(backend=counter, fullgraph=True)
    found = set()
    for group in [(9, [30]), (20, [9] * 9), (40, [40] * 4), (3, [1]), (90, [60] * 2), (5, [7] * 4), (150, [9])]:
        samples = make_samples([group] * 3)
        for batch in pack(samples, 0, 1, seq_len=256, batch_rows=2, eos_id=EOS, shares_prompts=True):
            Scorer(model, 1.0, 37)(batch).logprobs_SC.sum().backward()
            found.add(tuple(batch.tokens_BL.shape))
    assert len(found) >= 6 and counter.frame_count <= 4, "first shape, other lengths, other rows, one row"


@pytest.mark.parametrize("shares_prompts", [True, False])
def test_packed_logprobs_equal_those_of_samples_alone(shares_prompts: bool) -> None:
    model = Transformer(ARGS, document_mask=True)
    model.init_weights(0)
    samples = make_samples([(3, [5, 9, 1]), (7, [2]), (1, [1, 1]), (12, [12, 2, 8]), (2, [9] * 5)])
    for batch in packed_of(samples, shares_prompts=shares_prompts):
        model.zero_grad()
        scored = Scorer(model, 1.0, 37)(batch)
        own_SC = scored.logprobs_SC
        weights_SC = torch.rand_like(own_SC) * batch.sampled_SC
        gradients = torch.autograd.grad((own_SC * weights_SC).sum(), list(model.parameters()))
        total = torch.zeros(())
        for s, number in enumerate(batch.numbers_S.tolist()):
            sample = samples[number]
            logits = model(torch.tensor([[*sample.prompt_ids, *sample.completion_ids]]))[0]
            log_p = torch.log_softmax(logits[len(sample.prompt_ids) - 1 : -1], dim=-1)
            expected = log_p.gather(-1, torch.tensor(sample.completion_ids)[:, None])[:, 0]
            torch.testing.assert_close(own_SC[s, : len(expected)], expected, rtol=0, atol=2e-5)
            total = total + (weights_SC[s, : len(expected)] * expected).sum()
        for ours, alone in zip(gradients, torch.autograd.grad(total, list(model.parameters())), strict=True):
            torch.testing.assert_close(ours, alone, rtol=1e-4, atol=2e-5)
