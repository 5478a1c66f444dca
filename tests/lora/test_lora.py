"""Adapters of low rank: their numbers, runs of fine-tuning and reinforcement learning, and folders of PEFT."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import train_here, write_toml

from titan_pt.config.manager import load_config
from titan_pt.config.schema.lora import Lora
from titan_pt.lora.adapters import add_adapters
from titan_pt.models.transformer import Transformer, TransformerArgs


def tiny(options: Lora, dtype: torch.dtype = torch.float64) -> tuple[Transformer, Any]:
    """(a model of random weights with random adapters, the adapters)"""
    args = TransformerArgs(
        vocab_size=64, num_layers=2, hidden_size=32, num_heads=4, num_kv_heads=2, head_dim=8, intermediate_size=48
    )
    config = load_config(["--training.mixed_precision_param", "float32", "--data.sources", '[{name = "arithmetic"}]'])
    model: Any = Transformer(args)
    with torch.device("meta"):
        model = Transformer(args)
    add_adapters(model, config, options)
    model.to_empty(device="cpu")
    model.init_weights(1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for module in model.adapters.modules.values():
            module.lora_B.weight.normal_(generator=generator)
    return model.to(dtype), model.adapters


def test_adapters_are_the_merged_weights() -> None:
    """Logits, and gradients of A and B, which are those of the merged weight through B A."""
    model, adapters = tiny(Lora(enable=True, rank=3, alpha=6.0))
    tokens = torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(3))
    plain = Transformer(model.args).double()
    plain.load_state_dict(dict(adapters.merged()))
    logits, expected = model(tokens), plain(tokens)
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-12)
    logits.square().sum().backward()
    expected.square().sum().backward()
    gradients = dict(plain.named_parameters())
    for name, module in adapters.modules.items():
        whole, a, b = gradients[f"{name}.weight"].grad, module.lora_A.weight, module.lora_B.weight
        torch.testing.assert_close(a.grad, 2.0 * b.T @ whole, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(b.grad, 2.0 * whole @ a.T, rtol=1e-8, atol=1e-10)
        assert module.weight.grad is None
    with adapters.off():
        assert not torch.equal(model(tokens), logits)
    assert torch.equal(model(tokens), logits)
    assert set(model.state_dict()) == {f"{n}.lora_{p}.weight" for n in adapters.modules for p in "AB"}


BASE = {"steps": 2, "seq_len": 128, "local_batch_size": 4, "global_batch_size": 8}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a small pretrained model."""
    folder = tmp_path_factory.mktemp("base")
    assert train_here(write_toml(folder, training=BASE | {"mixed_precision_param": "float32"})) == 0
    return folder / "run"


def test_a_run(base: Path, tmp_path: Path) -> None:
    config = write_toml(
        tmp_path,
        job={"trainer": "sft", "dump_folder": str(tmp_path / "run")},
        lora={"enable": True, "rank": 4},
        checkpoint={"initial_load_path": str(base)},
        data={"sources": [{"name": "worked_problems"}]},
    )
    assert train_here(config) == 0
