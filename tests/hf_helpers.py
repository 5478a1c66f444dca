"""Small random models of transformers in folders, and comparisons with them."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from titan_pt.models.transformer import Transformer
from titan_pt.tools.export import main

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def export_here(arguments: list[str]) -> int:
    """`python -m titan_pt.tools.export` in this process; its log is taken away again."""
    log = logging.getLogger("titan_pt")
    before = log.handlers, log.level, log.propagate
    try:
        return int(main(arguments))
    finally:
        log.handlers, log.level, log.propagate = before


def write_tokenizer(folder: Path) -> None:
    """259 byte-level tokens; `<|im_end|>` ends documents, as in many chat models."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "bos_token": "<|im_start|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text("{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}")


def write_model(
    folder: Path, *, qwen: bool, tied: bool, dtype: torch.dtype = torch.float32, shard: str = "5GB", **options: Any
) -> torch.nn.Module:
    """A model with random weights and norms, a vocabulary of 300 rows, saved with a tokenizer of 259 tokens."""
    options = {
        "vocab_size": 300,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "intermediate_size": 96,
        "max_position_embeddings": 256,
        "tie_word_embeddings": tied,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        "eos_token_id": 258,
        "bos_token_id": None,
        "initializer_range": 0.05,
        **options,
    }
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**options)) if qwen else LlamaForCausalLM(LlamaConfig(**options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.copy_(torch.rand_like(parameter) + 0.5)
    model = model.to(dtype).eval()
    model.save_pretrained(folder, max_shard_size=shard)
    write_tokenizer(folder)
    return model


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder's safetensors files."""
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def load_reference(folder: Path, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """The folder as transformers loads it; a name too many or too few fails."""
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    return model.eval()


@torch.no_grad()
def logit_difference(ours: Transformer, theirs: torch.nn.Module, num_tokens: int) -> float:
    """The largest difference of the logits of random tokens, all of them tokens of the vocabulary."""
    tokens = torch.randint(0, num_tokens, (2, 100), generator=torch.Generator().manual_seed(0))
    expected = theirs(tokens).logits[..., :num_tokens]
    return float((ours(tokens)[..., :num_tokens] - expected).abs().max())


@torch.no_grad()
def greedy(ours: Transformer, prompt: list[int], count: int, stop_ids: Sequence[int] = ()) -> list[int]:
    """The likeliest tokens but for those that would end the text, one after the other, read anew for each."""
    tokens = list(prompt)
    for _ in range(count):
        logits_V = ours(torch.tensor([tokens]))[0, -1]
        logits_V[list(stop_ids)] = -torch.inf
        tokens.append(int(logits_V.argmax()))
    return tokens[len(prompt) :]


@torch.no_grad()
def greedy_reference(theirs: torch.nn.Module, prompt: list[int], count: int) -> list[int]:
    """The same by transformers' generate, which may not stop early."""
    output = theirs.generate(
        torch.tensor([prompt]), max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0
    )
    return output[0, len(prompt) :].tolist()
