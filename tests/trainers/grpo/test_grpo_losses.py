"""Policy losses, KL estimators and importance weights against loops written from the formulas.

Legend: B sequences, L tokens of a sequence, V vocabulary.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from titan_pt.trainers.grpo.kl import get_kl, importance_weights
from titan_pt.trainers.grpo.losses import PolicyLossConfig, get_policy_loss

NAMES = ["dapo", "grpo", "dr_grpo", "gspo", "cispo", "reinforce"]
CONFIG = PolicyLossConfig(clip_low=0.2, clip_high=0.28, cispo_cap=1.5, max_new_tokens=10)
GARBAGE = [math.nan, math.inf, -math.inf, 1e30, -7.0]


def clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def reference(
    name: str,
    logprobs: np.ndarray,
    old: np.ndarray,
    advantages: np.ndarray,
    mask: np.ndarray,
    config: PolicyLossConfig,
    weights: np.ndarray | None = None,
    fixed: np.ndarray | None = None,
) -> float:
    """The loss, one token at a time, in float64; `fixed` are the log-probabilities behind a stop-gradient."""
    low, high = 1 - config.clip_low, 1 + config.clip_high
    fixed = logprobs if fixed is None else fixed
    rows = [[t for t in range(mask.shape[1]) if mask[i, t]] for i in range(mask.shape[0])]
    num_tokens = sum(len(row) for row in rows) if config.num_tokens is None else float(config.num_tokens)
    num_sequences = sum(bool(row) for row in rows) if config.num_sequences is None else float(config.num_sequences)
    total = 0.0
    for i, row in enumerate(rows):
        if not row:
            continue
        a = float(advantages[i])
        sequence_ratio = math.exp(sum(float(logprobs[i, t] - old[i, t]) for t in row) / len(row))
        for t in row:
            ratio = math.exp(float(logprobs[i, t] - old[i, t]))
            if name in ("dapo", "grpo", "dr_grpo"):
                term = min(ratio * a, clip(ratio, low, high) * a)
            elif name == "gspo":
                term = min(sequence_ratio * a, clip(sequence_ratio, low, high) * a)
            elif name == "cispo":
                term = min(math.exp(float(fixed[i, t] - old[i, t])), config.cispo_cap) * a * float(logprobs[i, t])
            else:
                term = a * float(logprobs[i, t])
            term *= 1.0 if weights is None else float(weights[i, t])
            if name in ("dapo", "cispo", "reinforce"):
                total -= term / num_tokens
            elif name in ("grpo", "gspo"):
                total -= term / len(row) / num_sequences
            else:
                assert config.max_new_tokens is not None
                total -= term / (num_sequences * config.max_new_tokens)
    return total


@dataclass(frozen=True)
class Batch:
    """Float64 tensors; what is masked holds garbage."""

    logprobs: torch.Tensor
    old: torch.Tensor
    advantages: torch.Tensor
    mask: torch.Tensor
    weights: torch.Tensor

    def arrays(self) -> tuple[np.ndarray, ...]:
        return tuple(x.numpy() for x in (self.logprobs, self.old, self.advantages, self.mask))

    def near_a_kink(self, config: PolicyLossConfig) -> bool:
        """Whether some ratio is so close to a bound that a small step would cross it."""
        log_ratio = torch.where(self.mask, self.logprobs - self.old, 0.0)
        mean = log_ratio.sum(dim=1, keepdim=True) / self.mask.sum(dim=1, keepdim=True).clamp(min=1)
        ratios = torch.cat([log_ratio, mean], dim=1).exp()
        bounds = torch.tensor([1 - config.clip_low, 1 + config.clip_high, config.cispo_cap], dtype=torch.float64)
        return bool(((ratios[..., None] - bounds).abs() < 1e-3).any())


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """Ragged masks with gaps and empty rows, ratios on both sides of the bounds, groups without signal."""
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 7))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    kind = draw(st.sampled_from(["ragged", "gaps", "empty"]))
    if kind == "gaps":
        mask = torch.rand(rows, columns, generator=generator) < draw(st.floats(0.0, 1.0))
    else:
        lengths = torch.randint(0, columns + 1, (rows, 1), generator=generator)
        mask = torch.arange(columns) < lengths * (kind == "ragged")
    old = -3 * torch.rand(rows, columns, generator=generator, dtype=torch.float64)
    spread = draw(st.sampled_from([0.0, 0.1, 0.6]))
    logprobs = old + spread * torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    advantages = torch.randn(rows, generator=generator, dtype=torch.float64)
    advantages[torch.rand(rows, generator=generator) < draw(st.sampled_from([0.0, 0.5, 1.0]))] = 0.0
    weights = 2 * torch.rand(rows, columns, generator=generator, dtype=torch.float64)
    for values in (logprobs, old, weights):
        values[~mask] = draw(st.sampled_from(GARBAGE))
    return Batch(logprobs, old, advantages, mask, weights)


configs = st.builds(
    replace,
    st.just(CONFIG),
    clip_low=st.sampled_from([0.0, 0.03, 0.2, 10.0]),
    clip_high=st.sampled_from([0.0, 0.04, 0.28]),
    cispo_cap=st.sampled_from([1.0, 1.5, 5.0]),
    num_tokens=st.sampled_from([None, 1, 37, torch.tensor(37)]),
    num_sequences=st.sampled_from([None, 1, 9, torch.tensor(9.0)]),
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(NAMES), batches(), configs, st.booleans())
def test_value_equals_the_formula(name: str, batch: Batch, config: PolicyLossConfig, weighted: bool) -> None:
    weights = batch.weights if weighted else None
    expected = reference(name, *batch.arrays(), config, None if weights is None else weights.numpy())
    inputs = (batch.logprobs, batch.old, batch.advantages)
    value = get_policy_loss(name)(*inputs, batch.mask, config, weights)
    assert value.shape == () and value.dtype == torch.float64
    assert value.item() == pytest.approx(expected, rel=1e-11, abs=1e-13)
    narrow = get_policy_loss(name)(*(x.float() for x in inputs), batch.mask, config, weights)
    assert narrow.dtype == torch.float32
    assert narrow.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(NAMES), batches(), st.booleans())
def test_gradient_equals_finite_differences_of_the_formula(name: str, batch: Batch, weighted: bool) -> None:
    assume(not batch.near_a_kink(CONFIG))
    weights = batch.weights if weighted else None
    logprobs = batch.logprobs.clone().requires_grad_()
    get_policy_loss(name)(logprobs, batch.old, batch.advantages, batch.mask, CONFIG, weights).backward()
    assert logprobs.grad is not None
    fixed, old, advantages, mask = batch.arrays()
    for i, t in np.ndindex(mask.shape):
        if not mask[i, t]:
            assert logprobs.grad[i, t].item() == 0.0, "nothing flows to a masked position, not even a NaN"
            continue
        values = []
        for step in (1e-6, -1e-6):
            moved = fixed.copy()
            moved[i, t] += step
            array = None if weights is None else weights.numpy()
            values.append(reference(name, moved, old, advantages, mask, CONFIG, array, fixed))
        slope = (values[0] - values[1]) / 2e-6
        assert logprobs.grad[i, t].item() == pytest.approx(slope, rel=1e-5, abs=1e-8)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(NAMES), st.integers(1, 4), st.integers(1, 6), st.integers(0, 2**31))
def test_at_ratio_one_the_gradient_is_plain_policy_gradient(name: str, rows: int, columns: int, seed: int) -> None:
    """-sum of w_it A_i (onehot - softmax) with the weights of each mean; `gspo` weighs a token as `grpo` does."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, columns, 5, generator=generator, dtype=torch.float64).requires_grad_()
    taken = torch.randint(0, 5, (rows, columns), generator=generator)
    mask = torch.arange(columns) < torch.randint(0, columns + 1, (rows, 1), generator=generator)
    advantages = torch.randn(rows, generator=generator, dtype=torch.float64)
    logprobs = logits.log_softmax(dim=-1).gather(-1, taken[..., None])[..., 0]
    # The same tensor, not a copy: the old probabilities must not carry a gradient of their own.
    get_policy_loss(name)(logprobs, logprobs, advantages, mask, CONFIG).backward()

    lengths = mask.sum(dim=1).tolist()
    sequences = max(1, sum(length > 0 for length in lengths))
    expected = np.zeros((rows, columns, 5))
    for i, t in np.ndindex(rows, columns):
        if not mask[i, t]:
            continue
        weight = {"grpo": 1 / (sequences * lengths[i]), "dr_grpo": 1 / (sequences * 10)}
        weight["gspo"] = weight["grpo"]
        odds = [math.exp(x) for x in logits[i, t].tolist()]
        for v in range(5):
            direction = float(v == int(taken[i, t])) - odds[v] / sum(odds)
            expected[i, t, v] = -weight.get(name, 1 / sum(lengths)) * float(advantages[i]) * direction
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad.numpy(), expected, rtol=1e-10, atol=1e-14)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(NAMES), batches(), st.data())
def test_micro_batches_with_global_counts_add_up(name: str, batch: Batch, data: st.DataObject) -> None:
    config = replace(CONFIG, num_tokens=batch.mask.sum(), num_sequences=int(batch.mask.any(dim=1).sum()))
    part_of_row = torch.tensor(
        data.draw(st.lists(st.integers(0, 2), min_size=len(batch.mask), max_size=len(batch.mask)))
    )

    def run(rows: torch.Tensor, config: PolicyLossConfig) -> tuple[float, torch.Tensor]:
        logprobs = batch.logprobs.clone().requires_grad_()
        loss = get_policy_loss(name)(logprobs[rows], batch.old[rows], batch.advantages[rows], batch.mask[rows], config)
        loss.backward()
        assert logprobs.grad is not None
        return loss.item(), logprobs.grad

    whole, whole_gradient = run(torch.arange(len(batch.mask)), CONFIG)
    parts = [run((part_of_row == part).nonzero()[:, 0], config) for part in range(3)]
    assert sum(value for value, _ in parts) == pytest.approx(whole, rel=1e-11, abs=1e-13)
    torch.testing.assert_close(sum(gradient for _, gradient in parts), whole_gradient, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_the_average_of_local_means_is_another_number(name: str) -> None:
    logprobs = torch.tensor([[-1.0, -1.0, -1.0], [-2.0, -9.0, -9.0], [-1.0, -9.0, -9.0]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 0, 0]])
    advantages = torch.tensor([1.0, -1.0, -0.5])

    def run(rows: slice) -> torch.Tensor:
        return get_policy_loss(name)(logprobs[rows], logprobs[rows], advantages[rows], mask[rows], CONFIG)

    local = (run(slice(0, 1)) + run(slice(1, 3))) / 2
    assert abs(local - run(slice(0, 3))) > 0.01


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("garbage", GARBAGE)
def test_a_sequence_without_tokens_changes_nothing(name: str, garbage: float) -> None:
    def run(logprobs: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        loss = get_policy_loss(name)(logprobs.requires_grad_(), old, advantages, mask, CONFIG, torch.ones_like(old))
        loss.backward()
        assert logprobs.grad is not None
        return torch.cat([loss.detach()[None], logprobs.grad.flatten()])

    logprobs, old = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.5, -2.0]])
    alone = run(logprobs.clone(), old, torch.tensor([0.7]), torch.ones(1, 2))
    empty = torch.full((1, 2), garbage)
    both = run(
        torch.cat([logprobs, empty]),
        torch.cat([old, empty]),
        torch.tensor([0.7, garbage]),
        torch.tensor([[1.0, 1.0], [0.0, 0.0]]),
    )
    assert torch.equal(both, torch.cat([alone, torch.zeros(2)]))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [None, 0, torch.tensor(0)])
@pytest.mark.parametrize("shape", [(2, 3), (0, 3), (2, 0)])
def test_a_batch_without_tokens_is_zero(name: str, count: int | torch.Tensor | None, shape: tuple[int, int]) -> None:
    config = replace(CONFIG, num_tokens=count, num_sequences=count)
    logprobs = torch.full(shape, math.nan, requires_grad=True)
    inputs = (logprobs, torch.full(shape, math.inf), torch.ones(shape[0]), torch.zeros(shape))
    loss = get_policy_loss(name)(*inputs, config)
    loss.backward()
    assert loss.item() == 0.0
    assert logprobs.grad is not None and not logprobs.grad.any()
    statistics = get_policy_loss(name).statistics(*inputs, config)
    values = (statistics.clip_fraction, statistics.approx_kl, statistics.ratio_max, statistics.num_tokens)
    assert [value.item() for value in values] == [0.0, 0.0, 0.0, 0]


@pytest.mark.parametrize("name", NAMES)
def test_a_group_without_signal_gives_no_gradient(name: str) -> None:
    logprobs = torch.tensor([[-1.0, -2.0], [-3.0, -90.0]], requires_grad=True)
    old = torch.tensor([[-200.0, -2.0], [-1.0, -1.0]])  # a ratio that would overflow: inf * 0 is NaN
    loss = get_policy_loss(name)(logprobs, old, torch.zeros(2), torch.ones(2, 2), CONFIG)
    loss.backward()
    assert loss.item() == 0.0
    assert logprobs.grad is not None and not logprobs.grad.any()


def test_tokens_without_signal_count_in_the_mean() -> None:
    logprobs = torch.tensor([[-1.0, -2.0], [-1.0, -2.0]])
    mask, advantages = torch.ones(2, 2), torch.tensor([1.0, 0.0])
    loss = get_policy_loss("dapo")
    alone = loss(logprobs[:1], logprobs[:1], advantages[:1], mask[:1], CONFIG)
    assert loss(logprobs, logprobs, advantages, mask, CONFIG).item() == pytest.approx(alone.item() / 2)


@pytest.mark.parametrize("name", NAMES)
def test_clipped_tokens_get_no_gradient(name: str) -> None:
    """One token a row: above and below the bounds, with both signs of the advantage."""
    old = torch.full((4, 1), -2.0)
    logprobs = (old + torch.tensor([[0.5], [-0.5], [0.5], [-0.5]])).requires_grad_()
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0])
    get_policy_loss(name)(logprobs, old, advantages, torch.ones(4, 1), CONFIG).backward()
    assert logprobs.grad is not None
    free = [False, True, True, False] if name in ("dapo", "grpo", "dr_grpo", "gspo") else [True] * 4
    assert (logprobs.grad[:, 0] != 0).tolist() == free
    statistics = get_policy_loss(name).statistics(logprobs, old, advantages, torch.ones(4, 1), CONFIG)
    above_cap = 2  # exp(0.5) = 1.65 is above the cap of 1.5, whatever the advantage
    assert statistics.num_clipped.item() == {"cispo": above_cap, "reinforce": 0}.get(name, 2)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(NAMES), batches())
def test_statistics_equal_the_formula(name: str, batch: Batch) -> None:
    assume(not batch.near_a_kink(CONFIG))
    logprobs, old, advantages, mask = batch.arrays()
    clipped, kl, largest = 0, 0.0, 0.0
    for i in range(mask.shape[0]):
        row = [t for t in range(mask.shape[1]) if mask[i, t]]
        for t in row:
            token = math.exp(logprobs[i, t] - old[i, t])
            ratio = math.exp(sum(logprobs[i, u] - old[i, u] for u in row) / len(row)) if name == "gspo" else token
            a = advantages[i]
            clips = {"cispo": ratio > 1.5, "reinforce": False}
            clipped += clips.get(name, (a > 0 and ratio > 1.28) or (a < 0 and ratio < 0.8))
            kl += token - 1 - math.log(token)
            largest = max(largest, ratio)
    inputs = (batch.logprobs.clone().requires_grad_(), batch.old, batch.advantages, batch.mask)
    statistics = get_policy_loss(name).statistics(*inputs, CONFIG)
    assert statistics.num_tokens.item() == mask.sum()
    assert statistics.num_clipped.item() == clipped
    assert statistics.kl_sum.item() == pytest.approx(kl, rel=1e-9, abs=1e-12)
    assert statistics.ratio_max.item() == pytest.approx(largest, rel=1e-12)
    assert not statistics.kl_sum.requires_grad and not statistics.ratio_max.requires_grad
    assert statistics.clip_fraction.item() == pytest.approx(clipped / max(1, mask.sum()))
    assert statistics.approx_kl.item() == pytest.approx(kl / max(1, mask.sum()), rel=1e-9, abs=1e-12)


def test_a_clipped_sequence_counts_its_tokens() -> None:
    logprobs, mask = torch.tensor([[-1.0, -1.0, -1.0], [-1.0, -1.0, -1.0]]), torch.tensor([[1, 1, 0], [1, 0, 0]])
    inputs = (logprobs, logprobs - torch.tensor([[0.5], [0.1]]), torch.ones(2), mask, CONFIG)
    statistics = get_policy_loss("gspo").statistics(*inputs)
    assert (statistics.num_clipped.item(), statistics.num_tokens.item()) == (2, 3)
    assert statistics.ratio_max.item() == pytest.approx(math.exp(0.5))


@pytest.mark.parametrize("name", NAMES)
def test_only_the_new_log_probabilities_get_a_gradient(name: str) -> None:
    inputs = [torch.randn(2, 3), torch.randn(2, 3), torch.randn(2), torch.ones(2, 3), torch.rand(2, 3)]
    logprobs, old, advantages, mask, weights = (x.requires_grad_() for x in inputs)
    get_policy_loss(name)(logprobs, old, advantages, mask, CONFIG, weights).backward()
    assert [x.grad is None for x in inputs] == [False, True, True, True, True]


KL_FORMULAS = {"k1": lambda x: -x, "k2": lambda x: x * x / 2, "k3": lambda x: math.exp(x) - 1 - x}
KL_SLOPES = {
    "k1": lambda x: 1.0,
    "k2": lambda x: -x,
    "k3": lambda x: 1 - math.exp(x),
}  # by log pi, x = log ref - log pi


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(KL_FORMULAS)), batches())
def test_kl_equals_the_formula(name: str, batch: Batch) -> None:
    logprobs = batch.logprobs.clone().requires_grad_()
    kl = get_kl(name)(logprobs, batch.old, batch.mask)
    kl.sum().backward()
    assert logprobs.grad is not None
    for i, t in np.ndindex(batch.mask.shape):
        x = float(batch.old[i, t] - batch.logprobs[i, t]) if batch.mask[i, t] else None
        value, slope = (0.0, 0.0) if x is None else (KL_FORMULAS[name](x), KL_SLOPES[name](x))
        assert kl[i, t].item() == pytest.approx(value, rel=1e-9, abs=1e-12)
        assert logprobs.grad[i, t].item() == pytest.approx(slope, rel=1e-9, abs=1e-12)


def test_kl_gradients_in_expectation() -> None:
    """Summed over a whole vocabulary with pi as weights: k1 and k3 are the KL, only k2's gradient is that of the KL."""
    logits = torch.tensor([0.3, -1.0, 0.8, 0.1], dtype=torch.float64, requires_grad=True)
    reference_logprobs = torch.tensor([0.1, 0.2, -0.5, 0.4], dtype=torch.float64).log_softmax(-1)[None]
    logprobs = logits.log_softmax(-1)[None]
    pi = logprobs.detach().exp()
    exact = (logprobs.exp() * (logprobs - reference_logprobs)).sum()
    gradient = torch.autograd.grad(exact, logits, retain_graph=True)[0]
    values, gradients = {}, {}
    for name in KL_FORMULAS:
        mean = (pi * get_kl(name)(logprobs, reference_logprobs, torch.ones(1, 4))).sum()
        values[name] = mean.item()
        gradients[name] = torch.autograd.grad(mean, logits, retain_graph=True)[0]
    assert values["k1"] == pytest.approx(exact.item()) and values["k3"] == pytest.approx(exact.item())
    assert values["k2"] != pytest.approx(exact.item(), rel=1e-3)
    torch.testing.assert_close(gradients["k2"], gradient)
    torch.testing.assert_close(gradients["k1"], torch.zeros(4, dtype=torch.float64), atol=1e-12, rtol=0)
    assert not torch.allclose(gradients["k3"], gradient, rtol=1e-3)


def test_k3_is_exact_for_nearly_equal_policies() -> None:
    logprobs = torch.full((1, 1), -1.0)
    x = float((logprobs + 2e-3) - logprobs)
    kl = get_kl("k3")(logprobs, logprobs + 2e-3, torch.ones(1, 1))
    assert kl.item() == pytest.approx(x * x / 2 + x**3 / 6, rel=1e-4)


def test_kl_clamps_the_log_ratio() -> None:
    logprobs = torch.tensor([[-50.0, -1.0, -100.0]], requires_grad=True)
    ref = torch.tensor([[-1.0, -50.0, -1.0]])
    for name, values in {"k1": [-10.0, 10.0], "k2": [50.0, 50.0], "k3": [math.exp(10) - 11, math.exp(-10) + 9]}.items():
        kl = get_kl(name)(logprobs, ref, torch.tensor([[1, 1, 0]]), max_log_ratio=10.0)
        torch.testing.assert_close(kl, torch.tensor([[*values, 0.0]]))
        assert get_kl(name)(logprobs, ref, torch.ones(1, 3)).isfinite().all()


@settings(max_examples=100, deadline=None)
@given(batches(), st.sampled_from([0.5, 1.0, 2.0]))
def test_importance_weights_equal_the_formula(batch: Batch, cap: float) -> None:
    weights = importance_weights(batch.logprobs.clone().requires_grad_(), batch.old, batch.mask, cap)
    assert not weights.requires_grad
    for i, t in np.ndindex(batch.mask.shape):
        kept = bool(batch.mask[i, t])
        expected = min(math.exp(batch.logprobs[i, t] - batch.old[i, t]), cap) if kept else 0.0
        assert weights[i, t].item() == pytest.approx(expected, rel=1e-12)


def test_importance_weights_are_capped_and_never_overflow() -> None:
    weights = importance_weights(
        torch.tensor([[-1.0, -1.0, -900.0]]), torch.tensor([[-900.0, -1.5, -1.0]]), torch.ones(1, 3)
    )
    torch.testing.assert_close(weights, torch.tensor([[2.0, math.exp(0.5), 0.0]]))


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_is_computed_in_float32(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logprobs = (-3 * torch.rand(4, 64, generator=generator)).bfloat16()
    old = (logprobs.float() + 0.1 * torch.randn(4, 64, generator=generator)).bfloat16()
    inputs = (old, torch.randn(4, generator=generator), torch.ones(4, 64))
    expected = get_policy_loss(name)(logprobs.float(), old.float(), *inputs[1:], CONFIG)
    narrow = get_policy_loss(name)(logprobs.requires_grad_(), *inputs, CONFIG)
    assert narrow.dtype == torch.float32
    assert torch.equal(narrow, expected)
    narrow.backward()
    assert logprobs.grad is not None and logprobs.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("name", NAMES)
def test_an_unmasked_nan_is_not_hidden(name: str) -> None:
    logprobs = torch.tensor([[-1.0, math.nan]])
    loss = get_policy_loss(name)(logprobs, torch.zeros(1, 2), torch.ones(1), torch.ones(1, 2), CONFIG)
    assert loss.isnan()


def test_a_penalty_has_its_losses_mean() -> None:
    values, mask = torch.tensor([[1.0, 3.0, 9.0], [5.0, 9.0, 9.0]]), torch.tensor([[1, 1, 0], [1, 0, 0]])
    means = {name: get_policy_loss(name).mean(values, mask, CONFIG).item() for name in NAMES}
    assert means == pytest.approx(
        {"dapo": 3.0, "cispo": 3.0, "reinforce": 3.0, "grpo": 3.5, "gspo": 3.5, "dr_grpo": 9 / 20}
    )


def test_unknown_names_are_errors_that_name_the_known() -> None:
    with pytest.raises(ValueError, match=r"'ppo'.*dapo, grpo, dr_grpo, gspo, cispo, reinforce"):
        get_policy_loss("ppo")
    with pytest.raises(ValueError, match=r"'k4'.*k1, k2, k3"):
        get_kl("k4")


def test_dr_grpo_asks_for_its_constant() -> None:
    inputs = (torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(1), torch.ones(1, 2))
    with pytest.raises(ValueError, match="max_new_tokens is not set"):
        get_policy_loss("dr_grpo")(*inputs, PolicyLossConfig())


@pytest.mark.parametrize(
    ("field", "value"),
    [("clip_low", -0.1), ("clip_high", math.nan), ("cispo_cap", 0.2), ("max_new_tokens", 0)],
)
def test_settings_out_of_range_are_errors(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field} = "):
        PolicyLossConfig(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_waits_for_the_device(name: str) -> None:
    """Tensors of the meta device have no values: reading one on the host is an error."""
    logprobs, mask = torch.empty(2, 3, device="meta", requires_grad=True), torch.empty(2, 3, device="meta")
    count = torch.empty((), device="meta")
    for config in (CONFIG, replace(CONFIG, num_tokens=count, num_sequences=count)):
        loss = get_policy_loss(name)
        weights = importance_weights(logprobs, mask, mask)
        penalty = loss.mean(get_kl("k3")(logprobs, mask, mask), mask, config)
        (loss(logprobs, mask, mask[:, 0], mask, config, weights) + penalty).backward()
        assert loss.statistics(logprobs, mask, mask[:, 0], mask, config).clip_fraction.is_meta
    with pytest.raises(RuntimeError, match="meta"):
        count.item()
