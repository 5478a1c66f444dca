"""Runs with Muon: exact resume, and the same on one rank, on shards, and on replicas of shards."""

from pathlib import Path
from typing import Any

import pytest
from helpers import assert_same_step, losses, read_tensors, train, train_here, write_toml

OPTIONS: dict[str, Any] = {
    # Two and four ranks cannot share these rows evenly, nor these numbers of matrices.
    "model": {"hidden_size": 65, "intermediate_size": 129, "tie_embeddings": False, "num_layers": 3},
    "training": {"steps": 4, "seq_len": 32, "local_batch_size": 4, "global_batch_size": 16},
    "optimizer": {"name": "Muon", "lr": 3e-3, "muon": {"lr": 1e-2, "normuon": True, "cautious_weight_decay": True}},
    "data": {"num_streams": 4},
    "checkpoint": {"interval": 2, "keep_latest_k": 0},
    "lr_scheduler": {"warmup_steps": 1, "total_steps": 8},
}


def assert_near(one: Path, other: Path) -> None:
    """The same run but for the order of sums."""
    pairs = zip(losses(one / "run").values(), losses(other / "run").values(), strict=True)
    assert max(abs(a - b) for a, b in pairs) < 1e-4
    states = [read_tensors(folder / "run/checkpoint/step-4") for folder in (one, other)]
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        apart = (tensor.double() - states[1][name].double()).norm()
        assert apart <= 1e-3 * tensor.double().norm() + 1e-6, name


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    assert train_here(write_toml(folder, **OPTIONS)) == 0
    return folder


def test_resumed_is_the_uninterrupted_run(alone: Path, tmp_path: Path) -> None:
    parts = write_toml(tmp_path, **OPTIONS)
    assert train_here(parts, "--training.steps", "2") == 0
    assert train_here(parts) == 0
    assert_same_step(alone / "run/checkpoint/step-4", tmp_path / "run/checkpoint/step-4")
    assert losses(alone / "run") == losses(tmp_path / "run")
    states = {name.rpartition(".")[2] for name in read_tensors(tmp_path / "run/checkpoint/step-4")}
    assert {"momentum_buffer", "row_squares", "exp_avg", "exp_avg_sq", "step"} <= states
    assert train_here(parts, "--training.steps", "6", "--optimizer.muon.normuon", "false") == 0, "options may change"
    assert train_here(parts, "--training.steps", "8", "--optimizer.name", "AdamW") == 2, "its state is another's"


@pytest.mark.parametrize(
    ("ranks", "replicas"),
    [(4, 2), pytest.param(2, 1, marks=pytest.mark.slow), pytest.param(4, 1, marks=pytest.mark.slow)],
)
def test_ranks_share_the_matrices(alone: Path, tmp_path: Path, ranks: int, replicas: int) -> None:
    shared = write_toml(tmp_path, **OPTIONS, parallelism={"data_parallel_replicate_degree": replicas})
    result = train(shared, "--training.steps", "2", ranks=ranks)
    assert result.code == 0, result.stderr
    result = train(shared, ranks=ranks // 2)
    assert result.code == 0, result.stderr
    assert_near(alone, tmp_path)
