"""Noise of rows, and draws that follow their distribution."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from titan_pt.generation.sampling import Sampling, sample, uniform
from titan_pt.models.keyed_noise import row_key


def log_distribution(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """The log-probabilities that one row is drawn from, by definition."""
    logits = logits / sampling.temperature
    order = logits.argsort(descending=True)[: sampling.top_k or None]
    kept, before = torch.full_like(logits, float("-inf")), 0.0
    for token, share in zip(order.tolist(), logits[order].double().softmax(dim=0).tolist(), strict=True):
        if before < sampling.top_p:
            kept[token] = logits[token]
        before += share
    return kept.log_softmax(dim=0)


@pytest.mark.parametrize("size", [12, 13, 320])  # parts of 4 tokens, of one, of 64
@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.6}, {"top_k": 4}, {"top_p": 0.7}, {"temperature": 1.4, "top_k": 9, "top_p": 0.9}]
)
def test_draws_follow_the_distribution(size: int, options: dict[str, float]) -> None:
    """Pearson's chi-square over 20,000 keyed draws; the bound is the 0.9999 quantile, and the draws are fixed."""
    sampling, draws = Sampling(1, **options), 20_000
    logits = torch.randn(size, generator=torch.Generator().manual_seed(0)) * 1.5
    logits[5] = float("-inf")  # as rows that only pad the vocabulary
    expected = log_distribution(logits, sampling)
    keys = torch.tensor([row_key(1, 2, i, 0) for i in range(draws)])
    tokens, logprobs = sample(logits.expand(draws, -1), uniform(keys, torch.zeros(1, dtype=torch.long)), sampling)
    counts, shares = Counter(tokens.tolist()), expected.exp().tolist()
    kept = [v for v in range(size) if shares[v] > 0]
    assert set(counts) <= set(kept)
    chi_square = sum((counts[v] - draws * shares[v]) ** 2 / (draws * shares[v]) for v in kept)
    freedom = len(kept) - 1
    bound = freedom * (1 - 2 / (9 * freedom) + 3.719 * math.sqrt(2 / (9 * freedom))) ** 3  # Wilson-Hilferty
    assert chi_square < bound
    torch.testing.assert_close(logprobs, expected[tokens], rtol=0, atol=1e-5)


def test_draws_equal_those_of_one_cumulative_sum() -> None:
    """In parts or not, noise u draws the first token at which the cumulative probability is above u."""
    generator = torch.Generator().manual_seed(3)
    logits, noise = torch.randn(2000, 640, generator=generator) * 3, torch.rand(2000, generator=generator).double()
    tokens, _ = sample(logits, noise, Sampling(1))
    expected = torch.searchsorted(logits.double().softmax(dim=-1).cumsum(dim=-1), noise[:, None], right=True)[:, 0]
    assert (tokens != expected).sum() <= 1, "rounding at the border of two tokens"


@pytest.mark.parametrize("options", [{}, {"top_k": 4}, {"top_p": 0.7}])
def test_sums_are_of_integers(options: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """With debug.deterministic, torch refuses a cumulative sum of floats on CUDA."""
    summed, cumsum = [], torch.Tensor.cumsum

    def recorded(tensor: torch.Tensor, dim: int) -> torch.Tensor:
        summed.append(tensor.dtype)
        return cumsum(tensor, dim)

    monkeypatch.setattr(torch.Tensor, "cumsum", recorded)
    sample(torch.randn(3, 64), torch.rand(3).double(), Sampling(1, **options))
    assert summed and set(summed) == {torch.int64}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("options", [{}, {"top_k": 4}, {"top_p": 0.7}])
def test_deterministic_draws_on_a_card(options: dict[str, float]) -> None:
    """The draws that the CPU makes, by kernels that torch takes for deterministic."""
    generator = torch.Generator().manual_seed(3)
    logits, noise = torch.randn(64, 640, generator=generator) * 3, torch.rand(64, generator=generator).double()
    expected, logprobs = sample(logits, noise, Sampling(1, **options))
    torch.use_deterministic_algorithms(True)
    try:
        tokens, scores = (result.cpu() for result in sample(logits.cuda(), noise.cuda(), Sampling(1, **options)))
    finally:
        torch.use_deterministic_algorithms(False)
    same = tokens == expected
    assert (~same).sum() <= 1, "rounding at the border of two tokens"
    torch.testing.assert_close(scores[same], logprobs[same], rtol=0, atol=1e-4)


@pytest.mark.parametrize("noise", [0.5 / 2**32, 1 - 0.5 / 2**32])
def test_extreme_noise_draws_a_possible_token(noise: float) -> None:
    logits = torch.full((1, 256), float("-inf"))
    logits[0, [7, 100]] = torch.tensor([0.0, -90.0])
    token, logprob = sample(logits, torch.tensor([noise], dtype=torch.float64), Sampling(1))
    assert token.item() == 7 and logprob.item() == 0.0


def test_logits_of_nan_draw_token_0() -> None:
    token, logprob = sample(torch.full((2, 64), math.nan), torch.tensor([0.1, 0.9]).double(), Sampling(1))
    assert token.tolist() == [0, 0] and logprob.isnan().all()


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**63 - 1), position=st.integers(0, 2**20))
def test_noise_is_a_function_of_key_and_position(seed: int, position: int) -> None:
    keys = torch.tensor([row_key(seed, 0, i, j) for i in range(3) for j in range(3)])
    assert len(set(keys.tolist())) == 9
    numbers = uniform(keys, torch.full_like(keys, position))
    assert torch.all((numbers > 0) & (numbers < 1)) and len(set(numbers.tolist())) == 9
    alone = torch.cat([uniform(key[None], torch.tensor([position])) for key in keys])
    assert torch.equal(numbers, alone)


def test_noise_is_even_and_uncorrelated() -> None:
    keys = torch.tensor([row_key(0, 0, i, 0) for i in range(200)])
    numbers = torch.stack([uniform(keys, torch.full_like(keys, t)) for t in range(200)])
    assert abs(numbers.mean().item() - 0.5) < 0.005 and abs(numbers.var().item() - 1 / 12) < 0.002
    for other in (numbers[1:, :], numbers[:, 1:]):
        same = numbers[: other.shape[0], : other.shape[1]]
        correlation = torch.corrcoef(torch.stack([same.flatten(), other.flatten()]))[0, 1]
        assert abs(correlation.item()) < 0.02
