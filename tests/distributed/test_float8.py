"""Float8 products of the blocks' layers: emulated on a CPU, on several ranks, and refused where there are none."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_same_step, losses, read_tensors, train, train_here, write_toml
from torchao.float8.float8_linear import Float8Linear

from titan_pt.config import ConfigError, JobConfig
from titan_pt.config.schema.job_config import Compile, Float8, Quantize
from titan_pt.config.schema.training import LinearQuantization
from titan_pt.distributed.float8 import check_float8, convert_blocks
from titan_pt.models.transformer import Transformer, TransformerArgs
from titan_pt.tools.export import main as export

ON, TABLE = "--model.converters=quantize.linear.float8", "--quantize.linear.float8"
# 40 is no multiple of 16.
ARGS = TransformerArgs(
    hidden_size=48, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16, intermediate_size=40, vocab_size=96,
    tie_embeddings=False,
)  # fmt: skip


class OneRank:
    """What the conversion asks of the ranks."""

    size, device = 1, torch.device("cpu")


def config_of(*, compiled: bool = False, **options: Any) -> JobConfig:
    quantize = Quantize(linear=LinearQuantization(float8=Float8(**options)))
    return JobConfig(quantize=quantize, compile=Compile(enable=compiled))


def converted(**options: Any) -> tuple[Transformer, set[str]]:
    """A small model after the conversion, and the names of the layers that it changed."""
    model = Transformer(ARGS)
    model.init_weights(0)
    convert_blocks(model, config_of(emulate=True, **options), OneRank())  # type: ignore[arg-type]
    return model, {name for name, module in model.named_modules() if isinstance(module, Float8Linear)}


def test_layers_of_blocks_are_converted_but_those_left_out() -> None:
    attention = {f"layers.{i}.self_attn.{name}_proj" for i in (0, 1) for name in "qkvo"}
    model, layers = converted()
    assert layers == attention, "no output layer, and no size that is no multiple of 16"
    assert converted(filter_fqns=["layers.0.", "o_proj"])[1] == {f"layers.1.self_attn.{name}_proj" for name in "qkv"}
    plain = Transformer(ARGS)
    plain.init_weights(0)
    assert {name: tensor.dtype for name, tensor in model.state_dict().items()} == {
        name: tensor.dtype for name, tensor in plain.state_dict().items()
    }
    tokens = torch.arange(40).view(2, 20)
    exact, rounded = plain(tokens), model(tokens)
    assert 1e-4 < ((rounded - exact).norm() / exact.norm()).item() < 0.1, "float8 keeps 3 bits behind the first"
    with pytest.raises(ConfigError, match=r"filter_fqns = \['_proj'\]: leaves no layer to convert"):
        converted(filter_fqns=["_proj"])


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0)])
def test_a_card_before_the_h100_is_refused(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "NVIDIA X100")
    if capability >= (8, 9):
        check_float8(config_of(compiled=True), torch.device("cuda"))
        return
    with pytest.raises(ConfigError) as refused:
        check_float8(config_of(compiled=True), torch.device("cuda"))
    (problem,) = refused.value.problems
    number = ".".join(map(str, capability))
    assert problem.startswith(f"[quantize.linear.float8]: NVIDIA X100 (compute capability {number}) has no products")
    assert "H100 or later" in problem and problem.endswith("set quantize.linear.float8.emulate = true")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"compiled": True}, "emulate = true: cannot be compiled; set compile.enable = false"),
        ({"recipe_name": "rowwise", "enable_fsdp_float8_all_gather": True}, 'needs recipe_name = "tensorwise"'),
        ({"precompute_float8_dynamic_scale_for_fsdp": True}, "needs enable_fsdp_float8_all_gather = true"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_float8(config_of(emulate=True, **options), torch.device("cpu"))


def test_a_cpu_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_here(write_toml(tmp_path), ON, f"{TABLE}.recipe_name=rowwise") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("config error")]
    assert "[quantize.linear.float8]: a cpu device has no products of 8-bit floats" in line


def steps(folder: Path) -> tuple[Path, Path]:
    checkpoint = folder / "run" / "checkpoint"
    return checkpoint / "step-3", checkpoint / "step-6"


EMULATED = (ON, f"{TABLE}.emulate")
SAVED_AT_3 = {"checkpoint": {"interval": 3}}


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without float8."""
    folder = tmp_path_factory.mktemp("exact")
    assert train_here(write_toml(folder, **SAVED_AT_3)) == 0
    return folder


def assert_near_but_rounded(run: Path, exact: Path) -> None:
    found, expected = losses(run / "run"), losses(exact / "run")
    assert found == pytest.approx(expected, rel=2e-3)
    assert found != expected


def test_a_run_is_near_the_exact_one_and_resumes_to_the_bit(exact: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    config = write_toml(whole, **SAVED_AT_3)
    assert train_here(config, *EMULATED) == 0
    assert_near_but_rounded(whole, exact)
    saved, plain = read_tensors(steps(whole)[1]), read_tensors(steps(exact)[1])
    assert {name: (type(tensor), tensor.dtype, tensor.shape) for name, tensor in saved.items()} == {
        name: (type(tensor), tensor.dtype, tensor.shape) for name, tensor in plain.items()
    }, "a checkpoint like any other"
    shutil.copytree(whole, parts)
    shutil.rmtree(steps(parts)[1])
    assert train_here(config, *EMULATED, "--job.dump_folder", str(parts / "run")) == 0
    assert_same_step(steps(whole)[1], steps(parts)[1])
    folders = [tmp_path / "hf" / run.name for run in (whole, exact)]
    for run, folder in zip((whole, exact), folders, strict=True):
        assert export(["--checkpoint", str(run / "run"), "--output", str(folder)]) == 0
    told, expected = (json.loads((folder / "config.json").read_text()) for folder in folders)
    assert told == expected and "quantization_config" not in told


@pytest.mark.parametrize("recipe", ["rowwise", "rowwise_with_gw_hp"])
def test_scales_of_rows_and_recomputed_activations(exact: Path, tmp_path: Path, recipe: str) -> None:
    config = write_toml(tmp_path, activation_checkpoint={"selective_ac_option": "op"})
    assert train_here(config, *EMULATED, f"{TABLE}.recipe_name={recipe}") == 0
    assert_near_but_rounded(tmp_path, exact)


def test_weights_are_gathered_in_8_bits(exact: Path, tmp_path: Path) -> None:
    """Two ranks, the scales reduced at once; what is saved are the weights of 32 bits, which any run reads."""
    config = write_toml(tmp_path, **SAVED_AT_3)
    gather = [f"{TABLE}.enable_fsdp_float8_all_gather", f"{TABLE}.precompute_float8_dynamic_scale_for_fsdp"]
    done = train(config, *EMULATED, *gather, ranks=2)
    assert done.code == 0, done.stderr
    assert_near_but_rounded(tmp_path, exact)
    whole = read_tensors(steps(tmp_path)[1])
    for file in (steps(tmp_path)[1] / "tensors").glob("*.distcp"):
        assert b"torchao" not in file.read_bytes(), "its classes are read by no run without float8"
    shutil.rmtree(steps(tmp_path)[1])
    again = train(config, *EMULATED, *gather, ranks=2)
    assert again.code == 0, again.stderr
    resumed = read_tensors(steps(tmp_path)[1])
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
    other = write_toml(tmp_path / "other", checkpoint={"initial_load_path": str(tmp_path / "run")})
    assert train_here(other, "--training.steps=1") == 0, "without float8, on one rank"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_float8_on_a_card(tmp_path: Path) -> None:
    """Compiled, in bfloat16: refused before Hopper and Ada, else near the run without it."""
    folders = (tmp_path / "exact", tmp_path / "float8")
    for folder in folders:
        table = {"model": {"converters": ["quantize.linear.float8"]}} if folder.name == "float8" else {}
        config = write_toml(folder, compile={"enable": "auto"}, training={"mixed_precision_param": "bfloat16"}, **table)
        done = train(config)
        if table and torch.cuda.get_device_capability() < (8, 9):
            assert done.code == 2 and "H100 or later" in done.last_line
            return
        assert done.code == 0, done.stderr
    assert losses(folders[1] / "run") == pytest.approx(losses(folders[0] / "run"), rel=5e-3)
