"""TorchTitan's files as files of titan_pt: what comes out is accepted by the config loader."""

from pathlib import Path

import pytest
from tool_helpers import tool_here

from titan_pt.config import ConfigError
from titan_pt.config.manager import resolve
from titan_pt.config.resolve.torchtitan import FLAVORS, MODELS
from titan_pt.tools import port

LLAMA = """
title = "no table"
[job]
description = "Llama 3 8B training"
print_args = true
[metrics]
enable_color_printing = false
enable_wandb = false
[model]
name = "llama3"
flavor = "8B"
hf_assets_path = "./assets/hf/Llama-3.1-8B"
converters = ["float8"]
[optimizer]
lr = 3e-4
bogus = "a value"
[training]
batch_size = 1
seq_len = 8192
steps = 1000
dataset = "c4"
warmup_steps = 7
data_parallel_replicate_degree = 2
tensor_parallel_degree = 1
seed = "not a number"
[parallelism]
tensor_parallel_degree = 8
context_parallel_degree = 1
[checkpoint]
enable_checkpoint = true
last_save_model_only = true
model_weights_only = false
[activation_checkpoint]
mode = "nonsense"
[validation]
enable = true
dataset = "c4_validation"
[float8]
enable_fsdp_float8_all_gather = true
[fault_tolerance]
enable = true
"""


def test_a_file_of_torchtitan_is_accepted_and_names_what_it_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "llama.toml").write_text(LLAMA)
    assert tool_here(port.main, tmp_path / "llama.toml") == 0
    text, told = capsys.readouterr()
    (tmp_path / "mine.toml").write_text(text)
    resolved = resolve([str(tmp_path / "mine.toml")])
    config = resolved.config
    assert not resolved.notices
    model = config.model.model_dump()
    assert (config.model.name, model["hidden_size"], model["num_layers"]) == ("transformer", 4096, 32)
    assert (model["num_kv_heads"], model["intermediate_size"], model["qk_norm"]) == (8, 14336, False)
    assert (config.job.print_config, config.metrics.disable_color_printing) == (True, True)
    assert (config.training.local_batch_size, config.checkpoint.enable, config.optimizer.lr) == (1, True, 3e-4)
    assert (config.lr_scheduler.warmup_steps, config.parallelism.data_parallel_replicate_degree) == (7, 2)
    assert config.tokenizer.name == "./assets/hf/Llama-3.1-8B"
    assert [source.dataset for source in config.data.sources] == ["allenai/c4"]
    assert [source.split for source in config.validation.sources] == ["validation"]
    for left in (
        "title = 'no table'",
        "optimizer.bogus = 'a value': unknown key",
        "seed = 'not a number': must be an integer",
        "no effect in titan_pt: training.tensor_parallel_degree = 1",
        "checkpoint.model_weights_only = false: unknown key; titan_pt has none like it: the last step is",
        "parallelism.tensor_parallel_degree = 8",
        "checkpoint.last_save_model_only = true",
        "activation_checkpoint.mode = 'nonsense'",
        "float8.enable_fsdp_float8_all_gather",
        "fault_tolerance.enable = true",
    ):
        assert left in told and left in text.partition("\n\n")[0], left


@pytest.mark.parametrize(("model", "flavor"), [(model, flavor) for model in MODELS for flavor in FLAVORS[model]])
def test_each_flavor_becomes_fields(model: str, flavor: str, tmp_path: Path) -> None:
    tables, notes = port.ported({"model": {"name": model, "flavor": flavor}, "training": {"dataset_path": "/data/x"}})
    assert ("give its fields" in " ".join(notes)) == (flavor == "all")
    assert flavor == "all" or {"hidden_size", "num_layers", "num_heads"} <= tables["model"].keys()
    assert tables["data"]["sources"] == [{"name": "x", "path": "/data/x"}]


def test_what_cannot_be_ported_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="'deepseek_v3': titan_pt trains dense transformers"):
        port.ported({"model": {"name": "deepseek_v3", "flavor": "16B"}})
    (tmp_path / "broken.toml").write_text("[job]\nprint_args = True\n")
    (tmp_path / "own.toml").write_text('extends = "quickstart"\n')
    for name, said in (
        ("broken.toml", "TOML writes true\n  print_args = True\n               ^"),
        ("none.toml", "no such file"),
        ("own.toml", "a file of titan_pt already"),
    ):
        assert tool_here(port.main, tmp_path / name) == 2
        assert said in capsys.readouterr().err
