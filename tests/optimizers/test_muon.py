"""Muon against a float64 NumPy of its papers and against torch's; its groups, bad steps, and keys."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from titan_pt.components.optimizer import guarded_update, keep_own_rates
from titan_pt.config import load_config
from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.muon import MuonOptimizer, MuonTable
from titan_pt.optimizers.muon import build_muon
from titan_pt.optimizers.orthogonal import iterations, orthogonalize
from titan_pt.tools.explain import explain_optimizer

SOURCE = '--data.sources=[{name="arithmetic"}]'


class Small(nn.Module):
    """Matrices of three shapes, two of one; an embedding, an output layer, a norm and a tensor of three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(7, 6)
        self.blocks = nn.ModuleList([nn.Linear(6, 9), nn.Linear(6, 9), nn.Linear(9, 6), nn.Linear(6, 6, bias=False)])
        self.head = nn.Linear(6, 7, bias=False)
        self.cube = nn.Parameter(torch.randn(2, 3, 4))

    @property
    def output_weight(self) -> torch.Tensor:
        return self.head.weight


def options(**own: Any) -> MuonOptimizer:
    return MuonOptimizer(name="Muon", lr=0.01, muon=MuonTable(**own))


def set_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter)


def newton_schulz(x: np.ndarray, polynomials: list[tuple[float, float, float]]) -> np.ndarray:
    x = x / np.linalg.norm(x)
    for a, b, c in polynomials:
        x = a * x + b * (x @ x.T) @ x + c * (x @ x.T) @ (x @ x.T) @ x
    return x


def numpy_steps(weight: np.ndarray, gradients: list[np.ndarray], own: MuonTable) -> np.ndarray:
    """The papers' formulas in their own words: 2502.16982, 2505.16932, 2510.05491, 2510.12402."""
    lr, decay = own.lr or 0.01, 0.1 if own.weight_decay is None else own.weight_decay
    rows, columns = weight.shape
    average, squares = np.zeros_like(weight), np.zeros(rows)
    for gradient in gradients:
        average = own.momentum * average + (1 - own.momentum) * gradient
        ahead = own.momentum * average + (1 - own.momentum) * gradient if own.nesterov else average
        update = newton_schulz(ahead, iterations(own.coefficients, own.ns_steps))
        if own.normuon:
            squares = own.normuon_beta2 * squares + (1 - own.normuon_beta2) * (update**2).mean(1)
            even = update / (np.sqrt(squares)[:, None] + 1e-8)
            update = even * np.linalg.norm(update) / np.linalg.norm(even)
        factor = {"original": max(1, rows / columns) ** 0.5, "match_rms_adamw": 0.2 * max(rows, columns) ** 0.5}
        decayed = weight * (update * weight >= 0) if own.cautious_weight_decay else weight
        weight = weight - lr * decay * decayed - lr * factor[own.adjust_lr] * update
    return weight


@pytest.mark.parametrize(
    "own",
    [
        {},
        {"adjust_lr": "original", "lr": 0.3, "weight_decay": 0.5, "nesterov": False, "momentum": 0.8},
        {"coefficients": "polar_express", "ns_steps": 10, "cautious_weight_decay": True, "weight_decay": 3.0},
        {"normuon": True, "normuon_beta2": 0.7, "ns_steps": 3},
    ],
)
def test_steps_are_those_of_the_papers(own: dict[str, Any]) -> None:
    model = Small().double()
    optimizer = build_muon(model, options(**own))
    weights = {name: parameter.detach().numpy().copy() for name, parameter in model.named_parameters()}
    gradients: dict[str, list[np.ndarray]] = {name: [] for name in weights}
    for step in range(4):
        set_gradients(model, step)
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            gradients[name].append(parameter.grad.numpy().copy())
        optimizer.step()
    for name, parameter in model.named_parameters():
        if name.startswith("blocks") and parameter.ndim == 2:
            expected = numpy_steps(weights[name], gradients[name], options(**own).muon)
            np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-9, atol=1e-12)


def test_the_rest_is_adamw_to_the_bit() -> None:
    ours, theirs = Small(), Small()
    optimizer = build_muon(ours, options(embedding_lr=0.3, output_weight_decay=0.7, other_lr=0.002))
    others = [theirs.cube, *(block.bias for block in theirs.blocks if block.bias is not None)]
    reference = torch.optim.AdamW(
        [
            {"params": [theirs.embedding.weight], "lr": 0.3, "weight_decay": 0.0},
            {"params": [theirs.head.weight], "weight_decay": 0.7},
            {"params": others, "lr": 0.002, "weight_decay": 0.0},
        ],
        lr=0.01,
        betas=(0.9, 0.95),
        eps=1e-8,
        fused=True,
    )
    for step in range(3):
        for model, each in ((ours, optimizer), (theirs, reference)):
            set_gradients(model, step)
            each.step()
    for group in reference.param_groups:
        for parameter in group["params"]:
            name = next(name for name, other in theirs.named_parameters() if other is parameter)
            assert torch.equal(parameter, ours.get_parameter(name)), name


@pytest.mark.parametrize(("compute_type", "most"), [("float32", 0.02), ("bfloat16", 1e-3)])
def test_torchs_muon_takes_the_same_steps_but_for_its_bfloat16(compute_type: str, most: float) -> None:
    ours, theirs = Small(), Small()
    optimizer = build_muon(ours, options(adjust_lr="match_rms_adamw", momentum=0.9), compute_type)
    matrices = [block.weight for block in theirs.blocks]
    reference = torch.optim.Muon(matrices, lr=0.01, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    before = [matrix.detach().clone() for matrix in matrices]
    for step in range(3):
        for model, each in ((ours, optimizer), (theirs, reference)):
            set_gradients(model, step)
            each.step()
    for matrix, block, old in zip(matrices, ours.blocks, before, strict=True):
        assert (matrix - block.weight).norm() < most * (matrix - old).norm()
    batch = torch.randn(3, 24, 8).bfloat16()
    found = orthogonalize(batch, iterations("quintic", 5))
    for matrix, ortho in zip(batch, found, strict=True):
        expected = torch.optim._muon._zeropower_via_newtonschulz(matrix, (3.4445, -4.775, 2.0315), 5, 1e-7)
        torch.testing.assert_close(ortho, expected, rtol=0.02, atol=0.01)


@pytest.mark.parametrize(("coefficients", "most"), [("quintic", 0.35), ("polar_express", 0.15)])
def test_singular_values_come_near_one(coefficients: str, most: float) -> None:
    batch = torch.randn(4, 32, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = torch.linalg.svdvals(orthogonalize(batch, iterations(coefficients, 5)))
    assert (values - 1).abs().max() < most
    exact = orthogonalize(batch, iterations("polar_express", 12))
    torch.testing.assert_close(exact @ exact.mT, torch.eye(32, dtype=torch.float64).expand(4, -1, -1))


@pytest.mark.parametrize("implementation", ["fused", "for-loop"])
def test_a_bad_step_changes_no_bit(implementation: Any) -> None:
    model = Small()
    table = MuonTable(normuon=True, cautious_weight_decay=True)
    optimizer = build_muon(model, MuonOptimizer(name="Muon", implementation=implementation, muon=table))
    keep_own_rates(optimizer, 0.01)

    def held() -> list[torch.Tensor]:
        states = [optimizer.state[parameter] for parameter in model.parameters()]
        return [*model.parameters(), *(value for state in states for value in state.values())]

    set_gradients(model, 0)
    guarded_update(model, optimizer, 0.01, 1.0, torch.tensor(1.0))
    before = [tensor.detach().clone() for tensor in held()]
    for value, loss in ((float("nan"), 1.0), (float("inf"), 1.0), (1.0, float("nan"))):
        set_gradients(model, 1)
        model.blocks[0].weight.grad[0, 0] *= value  # type: ignore[index, operator]
        _, skipped = guarded_update(model, optimizer, 0.01, 1.0, torch.tensor(loss))
        assert skipped.item() == 1.0
        assert all(torch.equal(old, now) for old, now in zip(before, held(), strict=True))
    set_gradients(model, 1)
    guarded_update(model, optimizer, 0.01, 1.0, torch.tensor(1.0))
    assert not any(torch.equal(old, now) for old, now in zip(before, held(), strict=True))


def test_each_group_has_its_rate_and_decay() -> None:
    model = Small()
    rates = {"lr": 0.02, "embedding_lr": 0.3, "output_lr": 0.004, "other_lr": 0.05}
    decays = {"weight_decay": 0.1, "embedding_weight_decay": 0.2, "output_weight_decay": 0.3, "other_weight_decay": 0.4}
    groups = {group["name"]: group for group in build_muon(model, options(**rates, **decays)).param_groups}
    assert [group["lr"] for group in groups.values()] == list(rates.values())
    assert [group["weight_decay"] for group in groups.values()] == list(decays.values())
    assert [len(group["params"]) for group in groups.values()] == [4, 1, 1, 4]
    plain = {group["name"]: group for group in build_muon(model, options()).param_groups}
    assert [plain[name]["weight_decay"] for name in groups] == [0.1, 0.0, 0.1, 0.0]


def test_its_keys_are_there_with_its_name_alone() -> None:
    config: Any = load_config([SOURCE, "--optimizer.name=Muon", "--optimizer.muon.lr=0.02"])
    assert config.optimizer.muon.lr == 0.02 and config.optimizer.muon.adjust_lr == "match_rms_adamw"
    with pytest.raises(ConfigError, match=r'optimizer\.muon\.lr .*belongs to optimizer.name = "Muon"'):
        load_config([SOURCE, "--optimizer.muon.lr=0.02"])
    with pytest.raises(ConfigError, match="did you mean coefficients"):
        load_config([SOURCE, "--optimizer.name=Muon", "--optimizer.muon.coeficients=quintic"])
    with pytest.raises(ConfigError, match='must be "quintic" or "polar_express"'):
        load_config([SOURCE, "--optimizer.name=Muon", "--optimizer.muon.coefficients=polar"])
    told = explain_optimizer(config)
    assert told[0].startswith("# optimizer Muon, group matrices: 28 tensors") and "lr 0.02" in told[0]
    assert told[1] == "#     layers.*.self_attn.q_proj.weight, 4 of them"
    assert "#     embed_tokens.weight" in told[told.index(next(line for line in told if "group embeddings" in line)) :]
