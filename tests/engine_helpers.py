"""A small model with a vocabulary that is padded, prompts of several lengths, and completions of them."""

from collections.abc import Sequence
from typing import Any

import torch

from titan_pt.generation.engine import Completion
from titan_pt.generation.native import NativeEngine
from titan_pt.generation.sampling import Sampling
from titan_pt.models.transformer import Transformer, TransformerArgs

ARGS = TransformerArgs(
    hidden_size=48, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16, intermediate_size=64, vocab_size=64,
    num_tokens=50, init_std=0.3,
)  # fmt: skip
STOP = 7
PROMPTS = [[1, 2, 3], [4], [9, 8, 7, 6, 5] * 5, [4], list(range(10, 28))]


def make_model(seed: int = 0, dtype: torch.dtype = torch.float32) -> Transformer:
    model = Transformer(ARGS)
    model.init_weights(seed)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def generate(model: Transformer, sampling: Sampling, n: int = 4, **options: Any) -> list[Completion]:
    return NativeEngine(model, [STOP], **options).generate(PROMPTS, sampling, n)


def tokens_of(completions: Sequence[Completion]) -> list[list[int]]:
    return [completion.token_ids for completion in completions]
