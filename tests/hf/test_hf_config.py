"""config.json and tensor names both ways; `model.from_hf`; what this model cannot be is refused by file and key."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from config_helpers import config_of, problem_of, problems_of, resolve_text, write
from hf_helpers import LLAMA3, write_model, write_tokenizer
from pydantic import ValidationError
from transformers import AutoConfig, LlamaConfig, Qwen3Config
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from titan_pt.config import ConfigError
from titan_pt.config.manager import dump_toml
from titan_pt.config.resolve.checks import model_args
from titan_pt.config.resolve.printing import explain
from titan_pt.hf.transformer import from_hf_name, read_config, to_hf_name, write_config
from titan_pt.models.transformer import FLAVORS, SPEC, Transformer, TransformerArgs
from titan_pt.models.transformer.model import rope_table
from titan_pt.protocols import model_spec

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
SCALED = {
    "rope_theta": 500.0,
    "rope_scaling_factor": 4.0,
    "rope_low_freq_factor": 1.0,
    "rope_high_freq_factor": 4.0,
    "rope_original_seq_len": 64,
}


def folder_of(folder: Path, config: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def refused(folder: Path, **changes: Any) -> str:
    """What reading says of LLAMA with these keys changed; None takes a key away."""
    config = {key: value for key, value in {**LLAMA, **changes}.items() if value is not None}
    with pytest.raises(ConfigError) as caught:
        read_config(folder_of(folder, config))
    (problem,) = caught.value.problems
    assert problem.startswith(f"{folder}/config.json: ")
    return problem.removeprefix(f"{folder}/config.json: ")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("qk_norm", [True, False])
def test_tensor_names_equal_those_of_transformers(tmp_path: Path, qk_norm: bool, tied: bool) -> None:
    model = write_model(tmp_path, qwen=qk_norm, tied=tied)
    theirs = {name for name in model.state_dict() if not (tied and name == "lm_head.weight")}
    with torch.device("meta"):
        ours = dict(Transformer(read_config(tmp_path)).named_parameters())
    assert {to_hf_name(name) for name in ours} == theirs
    assert {from_hf_name(name) for name in theirs} == ours.keys()
    assert from_hf_name("model.layers.0.self_attn.rotary_emb.inv_freq") is None
    assert from_hf_name("visual.proj.weight") == "visual.proj.weight"


@pytest.mark.parametrize("flavor", FLAVORS)
@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("scaling", [{}, SCALED])
def test_configs_survive_a_round_trip(tmp_path: Path, flavor: str, qk_norm: bool, scaling: dict[str, Any]) -> None:
    args = FLAVORS[flavor].model_copy(update={"qk_norm": qk_norm, "tie_embeddings": False, **scaling})
    written = write_config(args)
    assert read_config(folder_of(tmp_path, written)) == args
    theirs = AutoConfig.from_pretrained(tmp_path)
    assert type(theirs) is (Qwen3Config if qk_norm else LlamaConfig)
    assert theirs.rope_parameters["rope_theta"] == args.rope_theta
    assert theirs.rope_parameters["rope_type"] == ("llama3" if scaling else "default")
    theirs.save_pretrained(tmp_path)
    assert read_config(tmp_path) == args, "as transformers writes it"


def test_older_and_newer_forms_of_rope_are_read(tmp_path: Path) -> None:
    default = {"rope_type": "default"}
    scaling = {key: value for key, value in LLAMA3.items() if key != "rope_theta"}
    old_name = {**{key: value for key, value in scaling.items() if key != "rope_type"}, "type": "llama3"}
    for theta, rope in [
        (10000.0, {}),
        (5e5, {"rope_theta": 5e5}),
        (5e5, {"rope_theta": 500000, "rope_scaling": None, "rope_parameters": None}),
        (5e5, {"rope_parameters": {**default, "rope_theta": 5e5}}),
        (5e5, {"rope_parameters": {**default, "rope_theta": 5e5}, "rope_theta": 1.0}),
        (5e5, {"rope_parameters": default, "rope_theta": 5e5}),
    ]:
        args = read_config(folder_of(tmp_path, {**LLAMA, **rope}))
        assert (args.rope_theta, args.rope_scaling_factor) == (theta, None)
        assert AutoConfig.from_pretrained(tmp_path).rope_parameters["rope_theta"] == theta
    for rope in [{"rope_theta": None}, {"rope_parameters": {**default, "rope_theta": None}, "rope_theta": 1.0}]:
        with pytest.raises(ConfigError, match="rope_theta = null: must be a number above 0"):
            read_config(folder_of(tmp_path, {**LLAMA, **rope}))
    for rope in [
        {"rope_theta": 500.0, "rope_scaling": scaling},
        {"rope_theta": 500.0, "rope_scaling": old_name},
        {"rope_parameters": LLAMA3},
    ]:
        args = read_config(folder_of(tmp_path, {**LLAMA, **rope}))
        assert args.model_dump().items() >= SCALED.items()


@pytest.mark.parametrize("head_dim", [32, 64, 128])
def test_scaled_frequencies_equal_those_of_transformers(head_dim: int) -> None:
    """Llama 3.1's own numbers: some frequencies are kept, some divided, some in between."""
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, **scaling}
    config = LlamaConfig(
        hidden_size=4 * head_dim, num_attention_heads=4, max_position_embeddings=131072, rope_parameters=rope
    )
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(10000)[None])
    changes = dict(zip(SCALED, (500000.0, 8.0, 1.0, 4.0, 8192), strict=True))
    args = FLAVORS["debugmodel"].model_copy(update={"head_dim": head_dim, "max_seq_len": 10000, **changes})
    for ours, theirs in zip(rope_table(args), (cos, sin), strict=True):
        # An angle of 10000 has 2^-10 of rounding in float32, whatever the order of operations.
        torch.testing.assert_close(ours, theirs[0, :, : head_dim // 2], atol=2e-3, rtol=0)
        torch.testing.assert_close(ours[:100], theirs[0, :100, : head_dim // 2], atol=2e-5, rtol=0)
    plain = rope_table(args.model_copy(update=dict.fromkeys(list(SCALED)[1:])))
    kept = [i for i in range(head_dim // 2) if torch.equal(plain[1][:, i], rope_table(args)[1][:, i])]
    wavelengths = [2 * math.pi * 500000.0 ** (2 * i / head_dim) for i in range(head_dim // 2)]
    assert kept == [i for i, wavelength in enumerate(wavelengths) if wavelength < 8192 / 4]


def test_rope_scaling_needs_all_fields() -> None:
    values = FLAVORS["debugmodel"].model_dump() | SCALED
    for name in list(SCALED)[1:]:
        with pytest.raises(ValidationError, match=f"model.{name}: not set"):
            TransformerArgs.model_validate({**values, name: None})
    with pytest.raises(ValidationError, match="must be above"):
        TransformerArgs.model_validate({**values, "rope_high_freq_factor": 0.5})


def test_missing_keys_have_the_defaults_of_transformers(tmp_path: Path) -> None:
    args = read_config(folder_of(tmp_path, LLAMA))
    theirs = AutoConfig.from_pretrained(tmp_path)
    assert (args.num_kv_heads, args.head_dim) == (theirs.num_key_value_heads, theirs.head_dim) == (4, 16)
    assert (args.norm_eps, args.tie_embeddings, args.max_seq_len) == (1e-6, False, 2048)
    assert (theirs.rms_norm_eps, theirs.tie_word_embeddings, theirs.max_position_embeddings) == (1e-6, False, 2048)
    qwen = {**LLAMA, "architectures": None, "model_type": "qwen3", "num_attention_heads": 32}
    args = read_config(folder_of(tmp_path, qwen))
    theirs = AutoConfig.from_pretrained(tmp_path)
    assert (args.head_dim, args.num_kv_heads) == (theirs.head_dim, theirs.num_key_value_heads) == (128, 32)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attention_bias": True}, "attention_bias = true: the projections of the attention have no biases here"),
        ({"mlp_bias": True}, "mlp_bias = true: the SwiGLU has no biases here; supported is false"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu': the MLP is a SwiGLU here; supported is \"silu\""),
        ({"quantization_config": {"bits": 4}}, "quantization_config = {...}: quantized weights cannot be read"),
        ({"use_sliding_window": True}, "use_sliding_window = true"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5: all of a head is rotated here"),
        ({"architectures": ["Qwen2ForCausalLM"]}, "architectures = ['Qwen2ForCausalLM']: unknown; supported are Llama"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "supported are LlamaForCausalLM, Qwen3ForCausalLM"),
        ({"architectures": None, "model_type": "mamba"}, "model_type = 'mamba': unknown; supported are llama, qwen3"),
        ({"architectures": None, "model_type": None}, "model_type = None: unknown"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling.rope_type = 'yarn': unknown"),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope_parameters.rope_type = 'linear': unknown"),
        ({"rope_scaling": {**LLAMA3, "factor": None}}, "rope_scaling: rope_type llama3 needs factor"),
        ({"rope_scaling": {**LLAMA3, "partial_rotary_factor": 0.5}}, "rope_scaling.partial_rotary_factor = 0.5"),
        ({"rope_parameters": [1]}, "rope_parameters = [...]: must be an object"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 500.0}}},
            "rope_parameters.full_attention = {...}: unknown to rope_type default; one for each type of layer is not",
        ),
        ({"rope_scaling": {"factor": 2.0}}, "rope_scaling.factor = 2.0: unknown to rope_type default"),
        ({"rope_scaling": {**LLAMA3, "attention_factor": 2.0}}, "rope_scaling.attention_factor = 2.0: unknown to"),
        ({"rope_interleaved": True}, "rope_interleaved = true: an unknown key, which may change what the model"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping = 30.0: an unknown key"),
        ({"sliding_window": 128}, "sliding_window = 128: an unknown key"),
        ({"is_causal": False}, "is_causal = false: a token sees none after it here; supported is true"),
        ({"attention_dropout": 0.1}, "attention_dropout = 0.1: there is no dropout here; supported is 0.0"),
        ({"layer_types": ["full_attention"]}, "layer_types: supported is full_attention for each of num_hidden_layers"),
        ({"vocab_size": None}, "vocab_size: missing"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000: Input should be less than or equal to 4096"),
        ({"intermediate_size": 10**15}, "intermediate_size = 1000000000000000: Input should be less than or equal to"),
        ({"rope_theta": "big"}, "rope_theta = 'big': Input should be a valid number"),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": 0.5}}, "must be above model.rope_low_freq_factor"),
        ({"hidden_size": None}, "hidden_size: missing"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers = 2.5: Input should be a valid integer"),
        ({"num_key_value_heads": 3}, "not a multiple of model.num_kv_heads = 3"),
    ],
)
def test_other_models_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    assert words in refused(tmp_path, **changes)


def test_unreadable_folders_are_refused(tmp_path: Path) -> None:
    for folder, words in [(tmp_path / "none", "no such folder"), (tmp_path, "a folder without config.json")]:
        with pytest.raises(ConfigError, match=words):
            read_config(folder)
    for content, words in [
        (b"{", "cannot be read"),
        (b"\xff\xfe", "line 1, byte 1: the file is UTF-16"),
        (b"[]", "not a JSON object"),
    ]:
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(ConfigError, match=words):
            read_config(tmp_path)


def test_from_hf_sets_the_architecture_and_the_tokenizer(tmp_path: Path) -> None:
    write_tokenizer(folder_of(tmp_path, {**LLAMA, "rope_scaling": LLAMA3, "max_position_embeddings": 256}))
    text = f'[model]\nfrom_hf = "{tmp_path}"\nrope_theta = 700.0\n[training]\nseq_len = 128\n'
    resolved = resolve_text(tmp_path, text)
    config, args = resolved.config, model_args(resolved.config, SPEC, 259)
    expected = read_config(tmp_path).model_copy(update={"rope_theta": 700.0, "num_tokens": 259})
    assert args == expected, "the TOML's own value is over the folder's"
    assert config.tokenizer.name == str(tmp_path)
    lines = explain(resolved).splitlines()
    assert f"model.hidden_size = 64  # {tmp_path}/config.json" in lines
    assert f"model.rope_theta = 700.0  # {tmp_path}/x.toml" in lines
    assert config_of(tmp_path, dump_toml(config)) == config, "the resolved config relaunches"
    flags = config_of(tmp_path, "[training]\nseq_len = 128", f"--model.from_hf={tmp_path}", "--tokenizer.name", "byte")
    assert (flags.model.hidden_size, flags.tokenizer.name) == (64, "byte")


def test_from_hf_overrides_the_flavor(tmp_path: Path) -> None:
    folder_of(tmp_path, LLAMA)
    resolved = resolve_text(tmp_path, f'[model]\nfrom_hf = "{tmp_path}"\nflavor = "tiny"\n')
    assert resolved.config.model.hidden_size == 64 and resolved.config.tokenizer.name == "byte"
    assert any("model.flavor = 'tiny' has no effect" in notice for notice in resolved.notices)


def test_from_hf_problems_are_reported_with_others(tmp_path: Path) -> None:
    problems = problems_of(tmp_path, '[model]\nfrom_hf = "none"\n[training]\nsteps = 0\n')
    assert any("model.from_hf = 'none' (x.toml): none: no such folder" in problem for problem in problems)
    assert any("training.steps" in problem for problem in problems)
    folder_of(tmp_path, {**LLAMA, "attention_bias": True})
    problem = problem_of(tmp_path, f'[model]\nfrom_hf = "{tmp_path}"\n')
    assert "attention_bias = true" in problem and "config.json" in problem
    folder_of(tmp_path, {**LLAMA, "max_position_embeddings": 256})
    assert "above model.max_seq_len = 256" in problem_of(tmp_path, f'[model]\nfrom_hf = "{tmp_path}"\n')


def test_from_hf_needs_a_layout(tmp_path: Path) -> None:
    module = """
from titan_pt.config import Section
from titan_pt.protocols.model_spec import ModelSpec, register_model_spec
class Args(Section):
    width: int = 8
register_model_spec(ModelSpec(name="no_hf_layout", args_type=Args, flavors={"debugmodel": Args()}, build=print,
                              parallelize=print, flops_per_token=print))
"""
    write(tmp_path, module, "no_hf_layout_module.py")
    text = '[model]\nname = "no_hf_layout"\n[experimental]\ncustom_import = "no_hf_layout_module"\n'
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        patch.setattr(model_spec._MODELS, "_registered", {})
        problem = problem_of(tmp_path, text, "--model.from_hf", "x")
        assert "model 'no_hf_layout' has no Hugging Face layout" in problem
        assert "has no Hugging Face layout" in problem_of(tmp_path, text, "--checkpoint.export_hf_interval", "5")
