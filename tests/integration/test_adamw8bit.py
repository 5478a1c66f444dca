"""Runs with moments of 8 bits: the loss of AdamW's, exact resume, the same on two ranks."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import assert_same_step, losses, read_tensors, train, train_here, write_toml

OPTIONS = {
    "optimizer": {"name": "AdamW8bit"},
    "checkpoint": {"interval": 3},
    "lr_scheduler": {"warmup_steps": 3, "total_steps": 6},
}


@pytest.fixture
def eager() -> Iterator[None]:
    """torchao compiles its update; the same runs uncompiled, without the seconds that takes."""
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


def test_resumed_is_the_uninterrupted_run(tmp_path: Path, eager: None) -> None:
    whole, parts = write_toml(tmp_path / "whole", **OPTIONS), write_toml(tmp_path / "parts", **OPTIONS)
    assert train_here(whole) == 0
    assert train_here(parts, "--training.steps", "3") == 0
    assert train_here(parts) == 0
    assert_same_step(tmp_path / "whole/run/checkpoint/step-6", tmp_path / "parts/run/checkpoint/step-6")
    assert losses(tmp_path / "whole/run") == losses(tmp_path / "parts/run")

    state = read_tensors(tmp_path / "whole/run/checkpoint/step-6")
    quantized = [name for name, tensor in state.items() if tensor.dtype == torch.uint8]
    assert len(quantized) == 2 * (1 + 2 * 5), "the embedding and of each layer q, o, gate, up, down"

    ordinary = write_toml(tmp_path / "ordinary", **{**OPTIONS, "optimizer": {"name": "AdamW"}})
    assert train_here(ordinary) == 0
    pairs = zip(losses(tmp_path / "whole/run").values(), losses(tmp_path / "ordinary/run").values(), strict=True)
    assert max(abs(a - b) for a, b in pairs) < 1e-3
    assert train_here(ordinary, "--optimizer.name", "AdamW8bit") == 2, "its state is another optimizer's"


@pytest.mark.slow
def test_two_ranks_hold_the_same_moments(tmp_path: Path) -> None:
    """Compiled, as a user's run is."""
    one, two = write_toml(tmp_path / "one", **OPTIONS), write_toml(tmp_path / "two", **OPTIONS)
    assert train(one, timeout=400).code == 0
    result = train(two, "--training.steps", "3", ranks=2, timeout=400)
    assert result.code == 0, result.stderr
    assert train(two, timeout=400).code == 0, "goes on alone"
    apart = [
        abs(a - b)
        for a, b in zip(losses(tmp_path / "one/run").values(), losses(tmp_path / "two/run").values(), strict=True)
    ]
    assert len(apart) == 6 and max(apart) < 1e-5
