"""Dropout (1207.0580) of what each layer adds to the residual stream, and of the embeddings; imported where it is on.

Whether a number is dropped is a function of the seed, the step, the tokens of its row, its place in the row, the layer
and the channel: no ranks, micro-batches or generators, nothing to save, and a recomputed forward drops the same. The
probabilities of the attention are not dropped: its kernels draw numbers that no key repeats on another layout.

Legend: B batch, L sequence, D model dim, P pairs of channels.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from titan_pt.models.keyed_noise import MASK, mix, row_key
from titan_pt.models.transformer.attention import Mask
from titan_pt.models.transformer.model import Block, CachedAttention, Rope, Transformer

_SHARES = 1 << 16  # a hash of 32 bits decides for two channels


class Dropout(NamedTuple):
    """The dropout of one layer in one forward."""

    keys_BL1: torch.Tensor
    """32-bit hashes in int64."""
    rate: float

    def layer(self, number: int) -> "Dropout":
        """That of another layer."""
        return Dropout(mix(self.keys_BL1 ^ (number * 0x9E3779B9 & MASK)), self.rate)

    def __call__(self, x_BLD: torch.Tensor, branch: int = 0) -> torch.Tensor:
        """Zero a share `rate` of the numbers, and scale the others up to the same mean.

        Args:
            branch: which of the layer's two outputs it is.
        """
        least, width = round(self.rate * _SHARES), x_BLD.shape[-1]
        pairs_P = torch.arange(-(-width // 2), device=x_BLD.device)
        hashes_BLP = mix(self.keys_BL1 ^ mix(2 * pairs_P + branch))
        shares_BLD = torch.cat((hashes_BLP & (_SHARES - 1), hashes_BLP >> 16), dim=-1)[..., :width]
        return torch.where(shares_BLD >= least, x_BLD * (_SHARES / (_SHARES - least)), 0.0)


class DroppingBlock(Block):
    """A layer that takes its dropout, in training."""

    def forward(
        self,
        x_BLD: torch.Tensor,
        rope: Rope,
        mask: Mask,
        cached: CachedAttention | None = None,
        drop: Dropout | None = None,
    ) -> torch.Tensor:
        if drop is None:
            return super().forward(x_BLD, rope, mask, cached)
        x_BLD = x_BLD + drop(self.self_attn(self.input_layernorm(x_BLD), rope, mask, cached))
        return x_BLD + drop(self.mlp(self.post_attention_layernorm(x_BLD)), 1)


def with_dropout(
    model: Transformer, tokens_BL: torch.Tensor, x_BLD: torch.Tensor
) -> tuple[torch.Tensor, Sequence[Callable[..., torch.Tensor]]]:
    """(the embeddings x_BLD after dropout, the layers with theirs) of a model in training."""
    drop = dropout_of(tokens_BL, model.args.dropout, *model.noise)
    layers = [functools.partial(layer, drop=drop.layer(number)) for number, layer in enumerate(model.layers, 1)]
    return drop(x_BLD), layers


def dropout_of(tokens_BL: torch.Tensor, rate: float, seed: int, step: int) -> Dropout:
    """The dropout of a forward.

    Args:
        step: finished training steps.
    """
    places_L = mix(torch.arange(tokens_BL.shape[1], device=tokens_BL.device) + 1)
    row_B1 = mix(tokens_BL.long() ^ places_L).sum(dim=1, keepdim=True) & MASK  # a sum: in any order of the adding
    key = row_key(seed, step)
    keys_BL = mix(mix(mix(row_B1 ^ (key & MASK)) ^ (key >> 32)) ^ places_L)
    return Dropout(keys_BL[..., None], rate)
