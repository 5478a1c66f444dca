"""Packed rows hold every sample once, and score as if each stood alone."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from titan_pt.data.stream.batch import IGNORED
from titan_pt.models.transformer import Transformer, TransformerArgs
from titan_pt.trainers.grpo.packing import PackedBatch, TrainSample, assign, fill_rows, pack
from titan_pt.trainers.grpo.policy import Scorer

ARGS = TransformerArgs(
    hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16, intermediate_size=48, vocab_size=40,
    num_tokens=37, init_std=0.3,
)  # fmt: skip
SEQ_LEN, EOS = 24, 0
LENGTHS = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=20)


def make_samples(lengths: list[tuple[int, int]]) -> list[TrainSample]:
    generator = torch.Generator().manual_seed(len(lengths))

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(1, 37, (count,), generator=generator).tolist())

    return [
        TrainSample(tokens(prompt), tokens(answer), tuple(-0.1 * t for t in range(answer)), i / 7, trains=i % 3 != 2)
        for i, (prompt, answer) in enumerate(lengths)
    ]


def packed_of(samples: list[TrainSample], rank: int = 0, num_ranks: int = 1, rows: int = 2) -> list[PackedBatch]:
    return pack(samples, rank, num_ranks, seq_len=SEQ_LEN, batch_rows=rows, eos_id=EOS)


@settings(max_examples=40, deadline=None)
@given(lengths=LENGTHS, num_ranks=st.integers(1, 4), rows=st.integers(1, 3))
def test_samples_are_packed_once_over_all_ranks(lengths: list[tuple[int, int]], num_ranks: int, rows: int) -> None:
    samples = make_samples(lengths)
    ranks = [packed_of(samples, rank, num_ranks, rows) for rank in range(num_ranks)]
    assert len({len(batches) for batches in ranks}) == 1, "FSDP's forward is a collective"
    assert len({batch.tokens_BL.shape for batches in ranks for batch in batches}) == 1
    seen = sorted(number for batches in ranks for batch in batches for number in batch.numbers_S.tolist())
    assert seen == list(range(len(samples)))
    for batch in (batch for batches in ranks for batch in batches):
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


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, SEQ_LEN), min_size=1, max_size=40), num_ranks=st.integers(1, 8))
def test_loads_are_even_and_rows_never_overflow(lengths: list[int], num_ranks: int) -> None:
    loads = [sum(lengths[i] for i in own) for own in assign(lengths, num_ranks)]
    assert max(loads) - min(loads) <= max(lengths)
    rows = fill_rows(range(len(lengths)), lengths, SEQ_LEN)
    used = [sum(lengths[i] for i in row) for row in rows]
    assert max(used) <= SEQ_LEN
    assert sum(left <= SEQ_LEN // 2 for left in used) <= 1, "two half-empty rows would have been one"


def test_packed_logprobs_equal_those_of_samples_alone() -> None:
    model = Transformer(ARGS, document_mask=True)
    model.init_weights(0)
    samples = make_samples([(3, 5), (7, 2), (1, 1), (12, 12), (2, 9)])
    for batch in packed_of(samples):
        scored = Scorer(model, 1.0, 37)(batch)
        own_SC = scored.logprobs_SC
        for s, number in enumerate(batch.numbers_S.tolist()):
            sample = samples[number]
            logits = model(torch.tensor([[*sample.prompt_ids, *sample.completion_ids]]))[0]
            log_p = torch.log_softmax(logits[len(sample.prompt_ids) - 1 : -1], dim=-1)
            expected = log_p.gather(-1, torch.tensor(sample.completion_ids)[:, None])[:, 0]
            torch.testing.assert_close(own_SC[s, : len(expected)], expected, rtol=0, atol=2e-5)
