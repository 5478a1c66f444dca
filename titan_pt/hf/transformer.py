"""Hugging Face's layout of the transformer, both ways: the names of tensors and config.json. No torch here.

With QK-norm it is Qwen3ForCausalLM, without LlamaForCausalLM. What those can express and this model cannot is refused.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from titan_pt.config.errors import ConfigError, one_of, shown
from titan_pt.config.names import hub_download, meant_path
from titan_pt.models.transformer.args import ROPE_SCALING, TransformerArgs
from titan_pt.protocols.model_spec import HuggingFaceLayout
from titan_pt.run.files import parse_json, read_text

# (prefix here, prefix there)
PREFIXES = (
    ("embed_tokens.", "model.embed_tokens."),
    ("layers.", "model.layers."),
    ("norm.", "model.norm."),
    ("lm_head.", "lm_head."),
)

# Field of TransformerArgs: key of config.json.
KEYS = {
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "intermediate_size": "intermediate_size",
    "vocab_size": "vocab_size",
    "head_dim": "head_dim",
    "max_seq_len": "max_position_embeddings",
    "tie_embeddings": "tie_word_embeddings",
    "norm_eps": "rms_norm_eps",
    "init_std": "initializer_range",
}

# Field of TransformerArgs: key of `rope_parameters`, or of `rope_scaling` in older files.
ROPE_KEYS = dict(
    zip(
        ROPE_SCALING,
        ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
        strict=True,
    )
)


@dataclass(frozen=True)
class Family:
    """A model class of Hugging Face, and its defaults for keys that config.json lacks."""

    architecture: str
    qk_norm: bool
    defaults: Mapping[str, Any]


_DEFAULTS = {"tie_word_embeddings": False, "rms_norm_eps": 1e-6, "initializer_range": 0.02}
# Sizes that transformers has a default for which no model is meant to have.
_REQUIRED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
FAMILIES = {
    "qwen3": Family(
        "Qwen3ForCausalLM",
        qk_norm=True,
        defaults={**_DEFAULTS, "head_dim": 128, "num_key_value_heads": 32, "max_position_embeddings": 32768},
    ),
    "llama": Family("LlamaForCausalLM", qk_norm=False, defaults={**_DEFAULTS, "max_position_embeddings": 2048}),
}

# Keys with one supported value: (that value, why others are refused).
_ONLY: dict[str, tuple[Any, str]] = {
    "attention_bias": (False, "the projections of the attention have no biases here"),
    "mlp_bias": (False, "the SwiGLU has no biases here"),
    "hidden_act": ("silu", "the MLP is a SwiGLU here"),
    "use_sliding_window": (False, "attention reaches every earlier token here"),
    "partial_rotary_factor": (1.0, "all of a head is rotated here"),
    "quantization_config": (None, "quantized weights cannot be read; take the model's unquantized folder"),
    "is_causal": (True, "a token sees none after it here"),
    "attention_dropout": (0.0, "there is no dropout here"),
    "hidden_dropout": (0.0, "there is no dropout here"),
}
# Keys that do not change what a model of a known architecture computes: about tokens, generation, training, storage and
# the library. Those of a sliding window act with use_sliding_window alone.
_INERT = frozenset(
    """architectures model_type transformers_version torch_dtype dtype use_cache pretraining_tp name_or_path auto_map
    attn_implementation bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id decoder_start_token_id
    forced_bos_token_id forced_eos_token_id suppress_tokens begin_suppress_tokens bad_words_ids tokenizer_class prefix
    id2label label2id num_labels problem_type finetuning_task task_specific_params return_dict return_dict_in_generate
    output_scores output_attentions output_hidden_states torchscript use_bfloat16 tf_legacy_loss is_decoder
    chunk_size_feed_forward gradient_checkpointing max_length min_length do_sample early_stopping num_beams
    num_beam_groups diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty
    no_repeat_ngram_size encoder_no_repeat_ngram_size num_return_sequences remove_invalid_values
    exponential_decay_length_penalty generation_config unsloth_fixed unsloth_version is_llama_config titan_pt
    transformers.js_config layer_types rope_theta rope_scaling rope_parameters tie_encoder_decoder""".split()  # noqa: SIM905
)
_SLIDING = frozenset({"sliding_window", "max_window_layers"})
# Arguments that neither class of transformers has; dropout is left out by every model that is not trained.
_BEYOND = ("qk_norm_placement", "attention_softcap", "logit_softcap")
_ROPE_KINDS = ("default", "llama3")


def to_hf_name(name: str) -> str:
    """Translate a parameter name of the Transformer to that of transformers; a name that is none stays."""
    return next((there + name.removeprefix(here) for here, there in PREFIXES if name.startswith(here)), name)


def from_hf_name(name: str) -> str | None:
    """Translate a tensor name of transformers to that of the Transformer; None for rotary tables of old files."""
    if name.endswith(".rotary_emb.inv_freq"):
        return None
    return next((here + name.removeprefix(there) for here, there in PREFIXES if name.startswith(there)), name)


def read_config(folder: Path) -> TransformerArgs:
    """Read the architecture from a folder's config.json; num_tokens is left unset.

    Raises:
        ConfigError: the file is missing or broken, or describes another kind of model; names file and key.
    """
    file = folder / "config.json"
    config = read_object(file)
    family = _family(file, config)
    problems = list(_unlike_this_model(config, family))
    if problems:
        raise ConfigError(*(f"{file}: {problem}" for problem in problems))
    values = {field: _value(config, key, family) for field, key in KEYS.items()}
    values |= {"qk_norm": family.qk_norm, **_read_rope(file, config)}
    try:
        return TransformerArgs.model_validate({name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        raise ConfigError(*(_problem(file, mistake) for mistake in error.errors(include_url=False))) from None


def write_config(args: TransformerArgs) -> dict[str, Any]:
    """The content of config.json for an architecture, without token ids and type of weights.

    RoPE is written as transformers 4 reads it, and most tools with it, and as transformers 5 does.

    Raises:
        ConfigError: these classes of transformers cannot compute it.
    """
    beyond = [f"model.{name} = {shown(value)}" for name in _BEYOND if (value := getattr(args, name)) is not None]
    if beyond:
        raise ConfigError(
            f"{', '.join(beyond)}: no Hugging Face folder can hold this model, as "
            f"{one_of(family.architecture for family in FAMILIES.values())} compute without; keep its checkpoints, "
            "which all tools of titan_pt open"
        )
    name, family = next((name, family) for name, family in FAMILIES.items() if family.qk_norm == args.qk_norm)
    fields = args.model_dump()
    scaling = {key: fields[field] for field, key in ROPE_KEYS.items()} if args.rope_scaling_factor else None
    rope: dict[str, Any] = {"rope_type": "llama3", **scaling} if scaling else {"rope_type": "default"}
    return {
        "architectures": [family.architecture],
        "model_type": name,
        **{key: fields[field] for field, key in KEYS.items()},
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        **({"use_sliding_window": False} if args.qk_norm else {"mlp_bias": False}),
        "rope_theta": args.rope_theta,
        "rope_scaling": rope if scaling else None,
        "rope_parameters": {**rope, "rope_theta": args.rope_theta},
        "use_cache": True,
    }


def read_object(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ConfigError: the file is missing, or holds something else; names the file.
    """
    try:
        content = parse_json(read_text(file))
    except FileNotFoundError:
        folder = str(file.parent)
        reason = f"a folder without {file.name}; give a Hugging Face folder"
        if not file.parent.is_dir():
            how = hub_download(folder) or f"{meant_path(folder)}; give a Hugging Face folder"
            reason = f"no such folder{how}"
        raise ConfigError(f"{folder}: {reason}") from None
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: not a JSON object")
    return content


def _family(file: Path, config: Mapping[str, Any]) -> Family:
    kind, architectures = config.get("model_type"), config.get("architectures")
    known = {family.architecture: name for name, family in FAMILIES.items()}
    named = architectures[0] if isinstance(architectures, list) and architectures else None
    if named is not None and named not in known:
        raise ConfigError(f"{file}: architectures = [{shown(named)}]: unknown; supported are {one_of(known)}")
    if kind is None and named is not None:
        kind = known[named]
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ConfigError(f"{file}: model_type = {shown(kind)}: unknown; supported are {one_of(FAMILIES)}")
    return FAMILIES[kind]


def _unlike_this_model(config: Mapping[str, Any], family: Family) -> Iterator[str]:
    """Yield a problem for each key whose value would make another model than this, or that is not known."""
    for key, (allowed, why) in _ONLY.items():
        value = config.get(key)
        if value is not None and value != allowed:
            meant = "no such key" if allowed is None else json.dumps(allowed)
            yield f"{key} = {shown(value)}: {why}; supported is {meant}"
    kinds, count = config.get("layer_types"), config.get("num_hidden_layers")
    every = all(kind == "full_attention" for kind in kinds) if isinstance(kinds, list) else False
    if kinds is not None and not (every and len(kinds) == count):
        yield "layer_types: supported is full_attention for each of num_hidden_layers: it reaches all earlier tokens"
    known = {*KEYS.values(), *_ONLY, *_INERT, *(_SLIDING if family.qk_norm else ())}
    for key in sorted(config.keys() - known):
        value = config[key]
        if not key.startswith("_") and value not in (None, False, "") and value not in ([], {}):
            yield (
                f"{key} = {shown(value)}: an unknown key, which may change what the model computes; remove it there if "
                "it does not"
            )
    for key in _REQUIRED:
        if config.get(key) is None:
            yield f"{key}: missing"


def _value(config: Mapping[str, Any], key: str, family: Family) -> Any:
    value = config.get(key)
    if value is None and not (key in config and key in ("head_dim", "num_key_value_heads")):  # null there: computed
        value = family.defaults.get(key)
    if value is not None:
        return value
    heads, width = config.get("num_attention_heads"), config.get("hidden_size")
    if key == "num_key_value_heads":
        return heads
    if key == "head_dim" and isinstance(heads, int) and isinstance(width, int) and heads > 0:
        return width // heads
    return None


def _read_rope(file: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Read RoPE's arguments; `rope_scaling` precedes `rope_parameters`, and a theta in it the one beside it."""
    name = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    rope = config.get(name) or {}
    if not isinstance(rope, dict):
        raise ConfigError(f"{file}: {name} = {shown(rope)}: must be an object")
    theta = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    if theta is None:
        raise ConfigError(f"{file}: rope_theta = null: must be a number above 0; leave it out for 10000")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in _ROPE_KINDS:
        raise ConfigError(f"{file}: {name}.rope_type = {shown(kind)}: unknown; supported are {one_of(_ROPE_KINDS)}")
    if rope.get("partial_rotary_factor") not in (None, 1, 1.0):
        value, (_, why) = rope["partial_rotary_factor"], _ONLY["partial_rotary_factor"]
        raise ConfigError(f"{file}: {name}.partial_rotary_factor = {shown(value)}: {why}; supported is 1.0")
    known = {
        "rope_type",
        "type",
        "rope_theta",
        "partial_rotary_factor",
        *(ROPE_KEYS.values() if kind == "llama3" else ()),
    }
    unknown = sorted(key for key in rope.keys() - known if rope[key] is not None)
    if unknown:
        key, value = unknown[0], rope[unknown[0]]
        nested = "; one for each type of layer is not supported" if isinstance(value, dict) else ""
        raise ConfigError(f"{file}: {name}.{key} = {shown(value)}: unknown to rope_type {kind}{nested}")
    if kind == "default":
        return {"rope_theta": theta}
    missing = [key for key in ROPE_KEYS.values() if rope.get(key) is None]
    if missing:
        raise ConfigError(f"{file}: {name}: rope_type llama3 needs {', '.join(missing)}")
    return {"rope_theta": theta, **{field: rope[key] for field, key in ROPE_KEYS.items()}}


def _problem(file: Path, mistake: Any) -> str:
    """Describe a validation error of pydantic by the keys of config.json."""
    message = mistake["msg"].removeprefix("Value error, ")
    if not mistake["loc"]:
        return f"{file}: {message}"
    field = str(mistake["loc"][0])
    key = KEYS.get(field, ROPE_KEYS.get(field, field))
    if mistake["type"] == "missing":
        return f"{file}: {key}: missing"
    return f"{file}: {key} = {shown(mistake['input'])}: {message}"


LAYOUT = HuggingFaceLayout(
    read_config=read_config,
    write_config=write_config,
    to_name=to_hf_name,
    from_name=from_hf_name,
    vocabulary=("embed_tokens.weight", "lm_head.weight"),
)
