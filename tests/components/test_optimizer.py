"""Parameter groups, and the update that skips what is not finite."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from titan_pt.components.optimizer import (
    MomentState,
    build_optimizers,
    describe_groups,
    group_rates,
    guarded_update,
    keep_own_rates,
    optimizer_tensors,
    set_rate,
    split_parameters,
)
from titan_pt.config import load_config
from titan_pt.models.transformer import Transformer, TransformerArgs
from titan_pt.optimizers.adamw8bit import block_size

SOURCE = '--data.sources=[{name="arithmetic"}]'
ARGS = TransformerArgs(
    hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16, intermediate_size=48, vocab_size=64
)


def small_model(tied: bool = True) -> Transformer:
    model = Transformer(ARGS.model_copy(update={"tie_embeddings": tied}))
    model.init_weights(seed=0)
    return model


@pytest.mark.parametrize("tied", [True, False])
def test_only_matrices_that_are_not_embeddings_decay(tied: bool) -> None:
    decayed, others = split_parameters(small_model(tied))
    assert {name.split(".")[-2] for name in decayed} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        *(() if tied else ("lm_head",)),
    }
    assert "embed_tokens.weight" in others and all("norm" in name or "embed" in name for name in others)
    optimizer = build_optimizers(small_model(tied), load_config([SOURCE, "--optimizer.weight_decay", "0.3"]))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert [len(group["params"]) for group in optimizer.param_groups] == [len(decayed), len(others)]


@pytest.mark.parametrize("implementation", ["fused", "foreach", "for-loop"])
def test_updates_equal_the_formula(implementation: str) -> None:
    """Loshchilov and Hutter 1711.05101, algorithm 2, in float64."""
    flags = ["--optimizer.implementation", implementation, "--optimizer.weight_decay", "0.1", "--optimizer.lr", "0.01"]
    config = load_config([SOURCE, *flags])
    model = nn.Linear(4, 3, bias=False)
    weight = model.weight.detach().double().clone()
    optimizer = build_optimizers(model, config)
    first, second = torch.zeros_like(weight), torch.zeros_like(weight)
    for t in range(1, 6):
        gradient = torch.randn(3, 4, generator=torch.Generator().manual_seed(t))
        model.weight.grad = gradient.clone()
        guarded_update(model, optimizer, 0.01, max_norm=1e9, loss=torch.tensor(1.0))
        first = 0.9 * first + 0.1 * gradient.double()
        second = 0.95 * second + 0.05 * gradient.double() ** 2
        step = (first / (1 - 0.9**t)) / ((second / (1 - 0.95**t)).sqrt() + 1e-8)
        weight = weight - 0.01 * 0.1 * weight - 0.01 * step
    torch.testing.assert_close(model.weight.detach().double(), weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("implementation", ["fused", "foreach", "for-loop"])
@pytest.mark.parametrize("where", ["gradient", "loss"])
def test_a_step_that_is_not_finite_changes_nothing(implementation: str, where: str) -> None:
    config = load_config([SOURCE, "--optimizer.implementation", implementation])
    model = small_model()
    optimizer = build_optimizers(model, config)

    def update(poison: bool) -> torch.Tensor:
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        if poison and where == "gradient":
            model.norm.weight.grad[3] = float("nan")
        loss = torch.tensor(float("inf") if poison and where == "loss" else 1.0)
        return guarded_update(model, optimizer, 1e-2, max_norm=1.0, loss=loss)[1]

    assert update(poison=False).item() == 0.0
    before = {name: t.detach().clone() for name, t in model.named_parameters()} | {
        name: t.clone() for name, t in optimizer_tensors(model, optimizer).items()
    }
    assert update(poison=True).item() == 1.0
    after = {**dict(model.named_parameters()), **optimizer_tensors(model, optimizer)}
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert update(poison=False).item() == 0.0
    assert not torch.equal(before["norm.weight"], model.norm.weight)


def test_gradients_are_clipped_to_the_global_norm() -> None:
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
    grad_norm, _ = guarded_update(model, optimizer, 1.0, max_norm=0.5, loss=torch.tensor(1.0))
    moved = torch.cat([(before[name] - p.detach()).flatten() for name, p in model.named_parameters()]).norm()
    torch.testing.assert_close(grad_norm, norm)
    assert moved.item() == pytest.approx(0.5, rel=1e-4)


def test_state_is_made_on_demand_and_starts_at_zero() -> None:
    model = small_model()
    optimizer = build_optimizers(model, load_config([SOURCE, "--optimizer.lr", "0.5"]))
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    tensors = optimizer_tensors(model, optimizer)
    assert set(tensors) == {f"{name}.{key}" for name in weights for key in ("exp_avg", "exp_avg_sq", "step")}
    assert not any(tensor.any() for tensor in tensors.values())
    assert all(torch.equal(weights[name], p) for name, p in model.named_parameters())
    assert all(group["lr"] == 0.5 for group in optimizer.param_groups)


def test_the_schedule_is_a_factor_on_each_groups_own_rate() -> None:
    a, b, c = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    groups = [{"params": [a], "name": "fast", "lr": 0.3}, {"params": [b], "lr": torch.tensor(8e-4)}, {"params": [c]}]
    optimizer = torch.optim.SGD(groups, lr=8e-4, weight_decay=0.5)
    assert describe_groups(optimizer)[0] == "group fast: 1 tensors, 2 parameters, lr 0.3, weight_decay 0.5"
    keep_own_rates(optimizer, 8e-4)
    set_rate(optimizer, 2e-4)
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates[0] == pytest.approx(0.3 / 4, rel=1e-15)
    assert torch.equal(rates[1], torch.tensor(2e-4)), "to the bit, in its own type"
    assert rates[2] == 2e-4
    assert group_rates(optimizer, 2e-4) == {"lr/fast": pytest.approx(0.3 / 4)}
    set_rate(optimizer, 0.0)
    assert not any(float(group["lr"]) for group in optimizer.param_groups)


def test_a_flag_of_a_bad_step_goes_only_to_kernels_that_read_it() -> None:
    """An optimizer with an option of its own that is named fused does not look at it."""

    class Fused(torch.optim.Optimizer):
        def __init__(self, params: object) -> None:
            super().__init__(params, {"lr": 0.1, "fused": True})  # type: ignore[arg-type]

        def step(self, closure: None = None) -> None:  # type: ignore[override]
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.data -= group["lr"] * parameter.grad

    model = nn.Linear(2, 2, bias=False)
    before = model.weight.detach().clone()
    model.weight.grad = torch.full((2, 2), float("nan"))
    _, skipped = guarded_update(model, Fused(model.parameters()), 0.1, 1.0, torch.tensor(1.0))
    assert skipped.item() == 1.0 and torch.equal(before, model.weight)


@pytest.fixture
def eager() -> Iterator[None]:
    """torchao compiles its update; the same runs uncompiled, without the seconds that takes."""
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


EIGHT_BIT = [SOURCE, "--optimizer.name", "AdamW8bit"]


def train_a_little(flags: list[str], steps: int) -> tuple[list[float], Transformer, torch.optim.Optimizer]:
    """Losses of a small model on the same few random rows."""
    model = Transformer(ARGS.model_copy(update={"hidden_size": 128, "num_heads": 8}))
    model.init_weights(seed=0)
    optimizer = build_optimizers(model, load_config(flags))
    tokens = torch.randint(0, 64, (4, 33), generator=torch.Generator().manual_seed(0))
    found = []
    for _ in range(steps):
        logits = model(tokens[:, :-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        guarded_update(model, optimizer, 3e-3, max_norm=1.0, loss=loss.detach())
        found.append(loss.item())
    return found, model, optimizer


def test_moments_of_eight_bits_learn_alike(eager: None) -> None:
    full, _, _ = train_a_little([SOURCE], 40)
    small, model, optimizer = train_a_little(EIGHT_BIT, 40)
    assert full[-1] < 0.7 * full[0]
    assert max(abs(a - b) for a, b in zip(full, small, strict=True)) < 0.02
    state = optimizer_tensors(model, optimizer)
    quantized = {name.split(".")[-4] for name, tensor in state.items() if tensor.dtype == torch.uint8}
    assert quantized == {"q_proj", "o_proj", "gate_proj", "up_proj", "embed_tokens"}, "rows of 128 values, and large"


def test_blocks_are_parts_of_rows() -> None:
    sizes = {
        (64, 64): 64,
        (64, 704): 64,
        (8, 1408): 128,
        (16, 1024): 256,
        (64, 72): None,
        (16, 32): None,
        (9999,): None,
    }
    assert {shape: block_size(torch.empty(shape, device="meta")) for shape in sizes} == sizes


def test_eight_bit_moments_skip_reset_and_load(eager: None) -> None:
    model = nn.Linear(128, 64, bias=False)
    optimizer = build_optimizers(model, load_config(EIGHT_BIT))

    def update(value: float) -> float:
        model.weight.grad = torch.full_like(model.weight, value)
        return guarded_update(model, optimizer, 1e-2, max_norm=1.0, loss=torch.tensor(1.0))[1].item()

    assert update(1.0) == 0.0
    before = {name: tensor.clone() for name, tensor in optimizer_tensors(model, optimizer).items()}
    weight = model.weight.detach().clone()
    assert before.keys() == {
        "weight.step",
        *(f"weight.{m}.{p}" for m in ("exp_avg", "exp_avg_sq") for p in ("codes", "scale")),
    }
    assert before["weight.exp_avg.scale"].shape == (64, 1)
    assert update(float("nan")) == 1.0
    after = optimizer_tensors(model, optimizer)
    assert torch.equal(weight, model.weight) and all(torch.equal(before[name], after[name]) for name in before)

    other = nn.Linear(128, 64, bias=False)
    other.load_state_dict(model.state_dict())
    loaded = build_optimizers(other, load_config(EIGHT_BIT))
    for name, tensor in optimizer_tensors(other, loaded).items():  # made by a step that changes nothing
        assert float(tensor.float().abs().sum()) == 0.0
        tensor.copy_(before[name])
    assert torch.equal(other.weight, model.weight)
    assert update(-0.5) == 0.0
    other.weight.grad = torch.full_like(other.weight, -0.5)
    guarded_update(other, loaded, 1e-2, max_norm=1.0, loss=torch.tensor(1.0))
    assert torch.equal(other.weight, model.weight), "the state was loaded in place"
    MomentState(other, loaded).reset()
    assert not any(float(tensor.float().abs().sum()) for tensor in optimizer_tensors(other, loaded).values())
