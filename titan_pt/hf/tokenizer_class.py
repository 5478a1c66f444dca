"""The class that a folder names for its tokenizer: its default tokens, and whether its rules are those of the file.

transformers 4 and the tokenizers library take a tokenizer.json as it is, and so does titan_pt. transformers 5 takes its
vocabulary alone for some classes, which build their rules themselves.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger("titan_pt")

DEFAULT_TOKENS: dict[str, dict[str, str]] = {
    "GPT2Tokenizer": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"},
    "Qwen2Tokenizer": {"eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
    "LlamaTokenizer": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "GemmaTokenizer": {
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
    },
}
"""Tokens that a class has where the files beside tokenizer.json name no others, by role."""

# Classes that transformers 5 takes for models whose folders name none, or whose names it does not trust.
_OF_MODELS = {
    **dict.fromkeys(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next"), "Qwen2Tokenizer"),
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text"), "GemmaTokenizer"),
    **dict.fromkeys(("gpt2", "gpt_neo", "gptj", "starcoder2", "phi"), "GPT2Tokenizer"),
}
# Further classes that build their rules, which are not compared.
_OTHERS = frozenset(
    """Albert Bart Barthez Bert BigBird Blenderbot CLIP Camembert CodeLlama Cohere DPRQuestionEncoder Deberta DebertaV2
    DistilBert Electra Esmc Funnel GPTNeoX Herbert LED Lasr LayoutLMv2 LayoutLMv3 LayoutXLM Luke Lxmert MBart50 MBart
    MPNet MarkupLM MobileBert Mvp Nllb Nougat OpenAIGPT Pegasus Qwen3_5 Reformer RemBert RoFormer Roberta SeamlessM4T
    Siglip2 Splinter T5 Udop VideoPrism Whisper XGLM XLMRoberta XLNet""".split()  # noqa: SIM905
)
_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTES = {f"<0x{i:02X}>" for i in range(256)}


def class_of(rules: Mapping[str, Any], config: Mapping[str, Any], model: Mapping[str, Any]) -> str | None:
    """Name of the class that transformers takes for a tokenizer, without "Fast".

    Args:
        rules: the tokenizer.json.
        config: the tokenizer_config.json.
        model: the config.json.
    """
    model_type = model.get("model_type")
    own = _OF_MODELS.get(model_type) if isinstance(model_type, str) else None
    named = config.get("tokenizer_class") or model.get("tokenizer_class") or own
    name = own if model_type == "qwen2" else named
    if not isinstance(name, str):
        return None
    name = name.removesuffix("Fast")
    is_byte_level = '"ByteLevel"' in json.dumps(rules["pre_tokenizer"])
    return None if name == "LlamaTokenizer" and is_byte_level else name  # as of Llama 3: transformers takes the file


def warn_of_other_rules(rules: Mapping[str, Any], file: Path, name: str | None, config: Mapping[str, Any]) -> None:
    """Warn where a class of transformers 5 builds other rules than tokenizer.json has."""
    if name is None:
        return
    if name in DEFAULT_TOKENS:
        parts = _differences(rules, name, config)
        what = f"its {' and '.join(parts)} differ{'s' if len(parts) == 1 else ''} from tokenizer.json's"
    else:
        parts = ["rules"] if name.removesuffix("Tokenizer") in _OTHERS else []
        what = "its rules and tokens are not compared with tokenizer.json's"
    if parts:
        logger.warning(
            f"{file}: tokenizer_class {name}: tokenizer.json is followed, as by transformers 4; transformers 5 builds "
            f"this class itself, and {what}, so that it may read some texts as other ids; name "
            "PreTrainedTokenizerFast to have the file followed everywhere"
        )


def _differences(rules: Mapping[str, Any], name: str, config: Mapping[str, Any]) -> list[str]:
    """Names of the parts of a tokenizer.json that are not what a class builds."""
    model, built = dict(rules["model"]), _BUILDERS[name](config)
    parts = [part for part, wanted in built.items() if part != "model" and _essence(rules[part]) != wanted]
    if "decoder" not in built and (rules["decoder"] or {}).get("type") != "ByteLevel":
        parts.append("decoder")
    wanted = {"type": "BPE", "fuse_unk": False, "byte_fallback": False, "unk_token": None, **built.get("model", {})}
    ignored = ("fuse_unk", "unk_token") if wanted["byte_fallback"] and model["vocab"].keys() >= _BYTES else ()
    differs = any(model.get(key) != value for key, value in wanted.items() if key not in ignored)
    affixes = any(model.get(key) for key in ("continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"))
    return [*parts, "model"] if differs or affixes else parts


def _essence(rule: Any) -> Any:
    """A rule without what changes no id and no text: offsets, and how a decoder of bytes would split."""
    if isinstance(rule, list):
        return [_essence(step) for step in rule]
    if not isinstance(rule, dict):
        return rule
    kept = {key: _essence(value) for key, value in rule.items() if key != "trim_offsets"}
    for key in ("normalizers", "pretokenizers", "decoders"):
        if kept.get("type") == "Sequence" and len(kept.get(key, [])) == 1:
            return kept[key][0]
    return kept


def _bytes(prefix: Any, *, words: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": bool(prefix), "use_regex": words}


def _gpt2(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"normalizer": None, "pre_tokenizer": _bytes(config.get("add_prefix_space"), words=True)}


def _qwen2(config: Mapping[str, Any]) -> dict[str, Any]:
    words = {"type": "Split", "pattern": {"Regex": _QWEN2_WORDS}, "behavior": "Isolated", "invert": False}
    steps = [words, _bytes(config.get("add_prefix_space"), words=False)]
    return {"normalizer": {"type": "NFC"}, "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}


def _llama(config: Mapping[str, Any]) -> dict[str, Any]:
    has_space = config.get("add_prefix_space") in (None, True)
    scheme = ("always" if config.get("legacy") else "first") if has_space else "never"
    steps = [*_SPACES, {"type": "Strip", "content": " ", "start": 1, "stop": 0}] if has_space else _SPACES
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False},
        "decoder": {"type": "Sequence", "decoders": steps},
        "model": {"fuse_unk": True, "byte_fallback": True},
    }


def _gemma(config: Mapping[str, Any]) -> dict[str, Any]:
    unknown = config.get("unk_token", "<unk>")
    space = {"String": " "}
    return {
        "normalizer": {"type": "Replace", "pattern": space, "content": "▁"},
        "pre_tokenizer": {"type": "Split", "pattern": space, "behavior": "MergedWithPrevious", "invert": False},
        "decoder": {"type": "Sequence", "decoders": _SPACES},
        "model": {"fuse_unk": True, "byte_fallback": True, "unk_token": unknown},
    }


_SPACES = [
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
]
_BUILDERS = {
    "GPT2Tokenizer": _gpt2,
    "Qwen2Tokenizer": _qwen2,
    "LlamaTokenizer": _llama,
    "GemmaTokenizer": _gemma,
}
