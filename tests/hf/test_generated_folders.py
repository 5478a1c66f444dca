"""Hugging Face folders with one thing changed: the logits of transformers, or a refusal that names it."""

import contextlib
import json
import shutil
import tempfile
import warnings
from pathlib import Path

import pytest
import torch
from hf_helpers import LLAMA3, read_weights, write_model
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from titan_pt.config.errors import ConfigError
from titan_pt.hf.model_source import open_model_source
from titan_pt.hf.transformer import _INERT, KEYS

TOKENS = torch.arange(12)[None] * 17 % 259
FAMILIES = {f"{'qwen' if qwen else 'llama'}-{tied}": (qwen, tied) for qwen in (True, False) for tied in (True, False)}
WRAPPED = ("_orig_mod.", "module.", "base_model.model.", "module._orig_mod.")
VALUES = (None, True, False, 0, 1, 2, 3, 0.5, 1.0, -1, 64, "silu", "x", [], ["full_attention"] * 2, {}, {"a": 1})
ROPES = (
    {"rope_type": "default"},
    {"rope_theta": 9.0},
    {"factor": 2.0},
    LLAMA3,
    {"full_attention": LLAMA3},
    {"type": "yarn"},
)
OTHERS = (
    *_INERT,
    *("sliding_window", "use_sliding_window", "attention_bias", "mlp_bias", "hidden_act", "partial_rotary_factor"),
    *("rope_interleaved", "is_causal", "final_logit_softcapping", "logit_scale", "attention_dropout", "_private"),
)


class Folders(dict[str, tuple[Path, dict[str, torch.Tensor]]]):
    """A whole folder of each family, and its tensors."""

    def __repr__(self) -> str:
        return "folders"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    found = Folders()
    for name, (qwen, tied) in FAMILIES.items():
        folder = tmp_path_factory.mktemp(name)
        write_model(folder, qwen=qwen, tied=tied)
        found[name] = (folder, read_weights(folder))
    return found


def ours(folder: Path) -> torch.Tensor | str:
    """The logits, or why there are none."""
    try:
        with torch.no_grad():
            return open_model_source(str(folder)).load("cpu", torch.float32)(TOKENS)[..., :259]
    except ConfigError as error:
        return str(error)


def theirs(folder: Path) -> torch.Tensor | None:
    """The logits; None where transformers has none for this folder, or makes weights up."""
    with torch.no_grad(), warnings.catch_warnings(), contextlib.suppress(Exception):
        warnings.simplefilter("ignore")
        model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        if not info["missing_keys"] and not info["mismatched_keys"]:
            return model.eval()(TOKENS).logits[..., :259]
    return None


def change_of(draw: st.DrawFn, tensors: dict[str, torch.Tensor]) -> tuple[str, dict[str, torch.Tensor]]:
    """(what is changed, the tensors)."""
    name = draw(st.sampled_from(sorted(tensors)))
    other = draw(st.sampled_from(sorted(tensors)))
    tensor = tensors[name]
    spoilt = tensor.clone()
    spoilt.flatten()[draw(st.integers(0, spoilt.numel() - 1))] = draw(st.sampled_from([float("nan"), float("inf")]))
    head = tensors["model.embed_tokens.weight"].clone()
    changed_head = head.clone()
    changed_head[draw(st.integers(0, 299)), draw(st.integers(0, 63))] += 1.0
    choices: dict[str, dict[str, torch.Tensor]] = {
        "nothing": tensors,
        "missing": {n: t for n, t in tensors.items() if n != name},
        "extra": {**tensors, draw(st.sampled_from(["score.weight", f"{name}.x", "v_head.weight"])): tensor.clone()},
        "bias": {**tensors, name.replace(".weight", ".bias"): torch.ones(3)},
        "swapped": {**tensors, name: tensors[other].clone()},
        "transposed": {**tensors, name: tensor.t().contiguous().clone()},
        "cut": {**tensors, name: tensor[:-1].clone()},
        "scalar": {**tensors, name: torch.ones(())},
        "spoilt": {**tensors, name: spoilt},
        "half": {**tensors, name: tensor.bfloat16()},
        "double": {**tensors, name: tensor.double()},
        "integers": {**tensors, name: tensor.int()},
        "bare": {n.removeprefix("model."): t for n, t in tensors.items()},
        "one bare": {n.removeprefix("model.") if n == name else n: t for n, t in tensors.items()},
        "twice": {**tensors, name.removeprefix("model.") + "": tensor.clone()},
        "old tables": {**tensors, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16)},
        "same head": {**tensors, "lm_head.weight": head},
        "other head": {**tensors, "lm_head.weight": changed_head},
    }
    choices |= {prefix: {prefix + n: t for n, t in tensors.items()} for prefix in WRAPPED}
    choices["foreign"] = {f"language_model.{n}": t for n, t in tensors.items()}
    kind = draw(st.sampled_from(sorted(choices)))
    return kind, choices[kind]


@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_changed_tensors(folders: Folders, data: st.DataObject) -> None:
    whole, tensors = folders[data.draw(st.sampled_from(sorted(folders)))]
    kind, changed = change_of(data.draw, tensors)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "in")
        shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("*.safetensors"))
        save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
        found = ours(folder)
        if isinstance(found, str):
            assert kind != "nothing" and (".safetensors: " in found or ": missing" in found), found
            return
        expected = theirs(whole if kind in WRAPPED else folder)
        assert expected is not None, kind
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_changed_configs(folders: Folders, data: st.DataObject) -> None:
    whole, _ = folders[data.draw(st.sampled_from(sorted(folders)))]
    key = data.draw(st.sampled_from(sorted({*KEYS.values(), *OTHERS})))
    value = data.draw(st.sampled_from([*VALUES, *ROPES] if "rope" in key else VALUES))
    assume(key != "max_position_embeddings" or value not in (1, 2, 3))  # fewer than the tokens here
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "in")
        shutil.copytree(whole, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, key: value}))
        found = ours(folder)
        if isinstance(found, str):
            assert any(word in found for word in (key, "config.json", ".safetensors", "lm_head.weight: missing")), found
            return
        expected = None if key == "max_position_embeddings" else theirs(folder)  # fewer than the tokens here
        if expected is not None:
            torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
