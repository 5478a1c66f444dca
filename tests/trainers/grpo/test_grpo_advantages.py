"""Group advantages and pass@k against loops written from the formulas.

Legend: P prompts, G samples per prompt.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from titan_pt.evaluation.accuracy import pass_at_k
from titan_pt.trainers.grpo.advantages import group_advantages


def reference(rewards: np.ndarray, scale: str) -> np.ndarray:
    """(R - mean of its group) / (deviation + 1e-6), one number at a time, in float64."""

    def deviation(values: list[float]) -> float:
        mean = sum(values) / len(values)
        return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))

    advantages = np.zeros(rewards.shape)
    everything = [float(reward) for group in rewards for reward in group]
    for p, group in enumerate(rewards):
        values = [float(reward) for reward in group]
        if min(values) == max(values):
            continue
        mean = sum(values) / len(values)
        divisor = {"group": deviation(values) + 1e-6, "batch": deviation(everything) + 1e-6, "none": 1.0}[scale]
        for g, value in enumerate(values):
            advantages[p, g] = (value - mean) / divisor
    return advantages


@st.composite
def rewards(draw: st.DrawFn) -> np.ndarray:
    prompts, samples = draw(st.integers(1, 5)), draw(st.integers(2, 9))
    value = draw(
        st.sampled_from([st.sampled_from([0.0, 1.0]), st.sampled_from([0.1, 0.3, 0.7]), st.floats(-1e3, 1e3, width=32)])
    )
    groups = []
    for _ in range(prompts):
        same = draw(st.booleans())
        groups.append([draw(value)] * samples if same else [draw(value) for _ in range(samples)])
    return np.array(groups)


@settings(max_examples=300, deadline=None)
@given(rewards(), st.sampled_from(["group", "batch", "none"]), st.sampled_from([torch.float32, torch.float64]))
def test_advantages_equal_the_formula(values: np.ndarray, scale: str, dtype: torch.dtype) -> None:
    rewards_PG = torch.tensor(values, dtype=dtype)
    advantages_PG = group_advantages(rewards_PG, scale)
    expected = reference(rewards_PG.double().numpy(), scale)
    tight = dtype == torch.float64
    # A deviation far below 1e-6 of the rewards is made of the last digits of the mean, also in the reference.
    atol = {"group": 1e-6, "batch": 1e-6, "none": 1e-9}[scale] if tight else 1e-4
    assert advantages_PG.dtype == dtype
    np.testing.assert_allclose(advantages_PG.double().numpy(), expected, rtol=1e-9 if tight else 1e-5, atol=atol)
    same_P = values.min(axis=1) == values.max(axis=1)
    assert not advantages_PG[torch.from_numpy(same_P)].any(), "a group without signal gets exact zeros"


def test_advantages_of_known_cases() -> None:
    rewards_PG = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    # Bessel's deviations: sqrt(3/4 / 3) = 0.5, sqrt(1 / 3), and over all eight sqrt((8 * 3/8 * 5/8) / 7).
    group = torch.tensor([[0.75, -0.25, -0.25, -0.25], [0.5, 0.5, -0.5, -0.5]], dtype=torch.float64)
    deviations = {
        "group": torch.tensor([[0.5], [math.sqrt(1 / 3)]], dtype=torch.float64) + 1e-6,
        "batch": math.sqrt(15 / 8 / 7) + 1e-6,
        "none": 1.0,
    }
    for scale, deviation in deviations.items():
        torch.testing.assert_close(group_advantages(rewards_PG, scale), group / deviation, rtol=1e-12, atol=0)


def test_the_default_scale_is_the_group() -> None:
    rewards_PG = torch.tensor([[1.0, 0.0], [5.0, 0.0]])
    assert torch.equal(group_advantages(rewards_PG), group_advantages(rewards_PG, "group"))


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_equal_rewards_give_exact_zeros(scale: str) -> None:
    # The mean of three times 0.1 is not 0.1: divided by a deviation of 1e-17 + 1e-6 that would not be zero.
    rewards_PG = torch.full((2, 3), 0.1, dtype=torch.float64)
    assert (rewards_PG.mean(dim=1) != 0.1).any()
    assert not group_advantages(rewards_PG, scale).any()


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.bfloat16, torch.float16])
def test_other_types_become_float32(dtype: torch.dtype) -> None:
    rewards_PG = torch.tensor([[1, 0, 0, 1]], dtype=dtype)
    advantages_PG = group_advantages(rewards_PG)
    assert advantages_PG.dtype == torch.float32
    torch.testing.assert_close(advantages_PG, group_advantages(rewards_PG.float()), rtol=0, atol=0)


def test_advantages_have_no_gradient() -> None:
    rewards_PG = torch.tensor([[1.0, 0.0, 3.0]], requires_grad=True)
    before = rewards_PG.detach().clone()
    assert not group_advantages(rewards_PG).requires_grad
    assert torch.equal(rewards_PG.detach(), before)


@pytest.mark.filterwarnings("error")  # torch warns of the deviation of nothing
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_no_prompts_give_no_advantages(scale: str) -> None:
    assert group_advantages(torch.zeros(0, 4), scale).shape == (0, 4)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("samples", [0, 1])
def test_a_group_of_one_is_an_error(samples: int, scale: str) -> None:
    with pytest.raises(ValueError, match=rf"{samples} samples per prompt.*at least 2"):
        group_advantages(torch.zeros(3, samples), scale)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_non_finite_reward_is_named(value: float) -> None:
    rewards_PG = torch.zeros(3, 4)
    rewards_PG[1, 2] = rewards_PG[2, 0] = value
    with pytest.raises(ValueError, match=rf"rewards_PG\[1, 2\] = {value}.*2 of 12"):
        group_advantages(rewards_PG)


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4), ()])
def test_a_wrong_shape_is_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="want \\(prompts, samples per prompt\\)"):
        group_advantages(torch.zeros(shape))


def test_unknown_scale_names_the_three() -> None:
    with pytest.raises(ValueError, match=r"'std'.*group, batch, none"):
        group_advantages(torch.zeros(2, 2), "std")


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_equals_enumeration(case: tuple[int, int, int]) -> None:
    n, c, k = case
    draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(c, n, k) == pytest.approx(sum(map(any, draws)) / len(draws), rel=1e-12, abs=0)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_equals_the_published_product(case: tuple[int, int, int]) -> None:
    """The stable form printed in the paper: 1 - prod over i of (1 - k / i), i from n - c + 1 to n."""
    n, c, k = case
    expected = 1.0 if n - c < k else 1.0 - float(np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))
    assert pass_at_k(c, n, k) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_pass_at_k_of_known_cases() -> None:
    assert pass_at_k(0, 16, 8) == 0.0
    assert pass_at_k(16, 16, 1) == 1.0
    assert pass_at_k(9, 16, 8) == 1.0  # seven wrong samples cannot fill a draw of eight
    assert pass_at_k(1, 16, 8) == 0.5
    assert pass_at_k(1, 10**6, 1) == 1e-6  # 1 - (1 - 1e-6) would lose ten digits
    assert pass_at_k(3, 5000, 2500) == pytest.approx(1 - 2500 * 2499 * 2498 / (5000 * 4999 * 4998), rel=1e-14)


@pytest.mark.parametrize("case", [(-1, 4, 1), (5, 4, 1), (1, 4, 0), (1, 4, 5), (0, 0, 1)])
def test_pass_at_k_refuses_impossible_counts(case: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="want"):
        pass_at_k(*case)
