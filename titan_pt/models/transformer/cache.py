"""Caches of the keys and values of tokens already read, for generation.

Legend: R rows, P prompts, L new tokens of a row, T slots of a row, K key-value heads, H head dim.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F

from titan_pt.models.transformer.args import TransformerArgs
from titan_pt.models.transformer.model import Head, Transformer


class CachedLayer(Protocol):
    """The cache of one layer, as its attention uses it."""

    def update(
        self, k_RKLH: torch.Tensor, v_RKLH: torch.Tensor, positions_RL: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the keys and values of new tokens, and return all keys and values that these attend to."""
        ...


class Cache(Protocol):
    """The cache of a model, as `forward_cached` uses it."""

    @property
    def layers(self) -> Sequence[CachedLayer]:
        """The caches of the model's layers, in order."""
        ...

    def mask(self, positions_RL: torch.Tensor) -> torch.Tensor | None:
        """Mask of the keys that tokens at these positions see, for `attend`; None: plain causal attention."""
        ...


def forward_cached(
    model: Transformer, tokens_RL: torch.Tensor, positions_RL: torch.Tensor, cache: Cache, head: Head | None = None
) -> Any:
    """Run a model on tokens that follow those in the cache, and add them to it; returns what its forward does.

    Args:
        tokens_RL: the new tokens of each row.
        positions_RL: their positions, which the cache has room for.
        cache: keys and values of the tokens before; changed in place.
    """
    embedding_VD, output_VD = model.tables()
    x_RLD = F.embedding(tokens_RL, embedding_VD)
    rope = model.rope(tokens_RL.shape[1], positions_RL, x_RLD.dtype)
    mask: Any = cache.mask(positions_RL)
    if model.args.attention_softcap:
        from titan_pt.models.transformer.softcap import capped

        mask = capped(mask, model.args.attention_softcap, tokens_RL, trains=False)
    elif tokens_RL.shape[1] == 1 and isinstance(mask, torch.Tensor):
        mask = NewTokens(mask)
    for layer, layer_cache in zip(model.layers, cache.layers, strict=True):
        update = functools.partial(layer_cache.update, positions_RL=positions_RL)
        x_RLD = layer(x_RLD, rope, mask, update)
    return (head or model.logits)(model.norm(x_RLD), output_VD)


class NewTokens(NamedTuple):
    """A mask_R1LT with one new token a row, for `attend`."""

    visible: torch.Tensor

    def attend(self, q_RNLH: torch.Tensor, k_RKTH: torch.Tensor, v_RKTH: torch.Tensor) -> torch.Tensor:
        """Compute attention output_RNLH.

        A token's query heads that share a key head become that head's queries: torch's bfloat16 kernel of the CPU is 3
        to 7 times slower at shared heads, and its flash kernel of CUDA takes no mask.
        """
        q_RKGH = q_RNLH.reshape(q_RNLH.shape[0], k_RKTH.shape[1], -1, q_RNLH.shape[-1])
        return F.scaled_dot_product_attention(q_RKGH, k_RKTH, v_RKTH, attn_mask=self.visible).view_as(q_RNLH)


@dataclass(frozen=True)
class LayerCache:
    """Keys and values of one layer; the slot of a token is its position."""

    k_RKTH: torch.Tensor
    v_RKTH: torch.Tensor

    def update(
        self, k_RKLH: torch.Tensor, v_RKLH: torch.Tensor, positions_RL: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new tokens, in place, and return all slots."""
        rows_R1 = torch.arange(positions_RL.shape[0], device=positions_RL.device)[:, None]
        self.k_RKTH[rows_R1, :, positions_RL] = k_RKLH.transpose(1, 2)
        self.v_RKTH[rows_R1, :, positions_RL] = v_RKLH.transpose(1, 2)
        return self.k_RKTH, self.v_RKTH


@dataclass(frozen=True)
class KVCache:
    """Keys and values of all layers, in memory that is never replaced, only written.

    Rows have their own lengths: slots above a row's newest position are never looked at, so prompts are padded on the
    right and rows can be copied and dropped freely.
    """

    layers: list[LayerCache]

    @classmethod
    def empty(cls, args: TransformerArgs, rows: int, slots: int, like: torch.Tensor) -> "KVCache":
        """Create a cache of `slots` positions with the device and type of a tensor."""
        shape = (rows, args.num_kv_heads, slots, args.head_dim)
        # Zeros: what a masked slot holds is multiplied by 0, and 0 * NaN is NaN.
        return cls([LayerCache(like.new_zeros(shape), like.new_zeros(shape)) for _ in range(args.num_layers)])

    @property
    def slots(self) -> int:
        """Positions of a row that attention reads."""
        return self.layers[0].k_RKTH.shape[2]

    @property
    def tensors(self) -> list[torch.Tensor]:
        """Keys and values of all layers."""
        return [tensor for layer in self.layers for tensor in (layer.k_RKTH, layer.v_RKTH)]

    def mask(self, positions_RL: torch.Tensor) -> torch.Tensor:
        """mask_R1LT of the tokens at these positions: each sees the slots up to its own."""
        return (torch.arange(self.slots, device=positions_RL.device) <= positions_RL[..., None])[:, None]

    def view(self, rows: slice, slots: int) -> "KVCache":
        """A cache of these rows and the first `slots` positions, in the same memory."""
        return KVCache(
            [LayerCache(layer.k_RKTH[rows, :, :slots], layer.v_RKTH[rows, :, :slots]) for layer in self.layers]
        )

    def keep(self, order_R: torch.Tensor) -> None:
        """Copy the given rows to the front, in place and in this order."""
        for layer in self.layers:
            for tensor in (layer.k_RKTH, layer.v_RKTH):
                tensor[: order_R.shape[0]] = tensor.index_select(0, order_R)


@dataclass(frozen=True)
class PromptLayer:
    """The cache of one layer while whole prompts are read."""

    target: LayerCache
    prompt_R: torch.Tensor

    def update(
        self, k_PKLH: torch.Tensor, v_PKLH: torch.Tensor, positions_RL: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Copy each prompt to its rows; the prompts attend to nothing but themselves."""
        length = positions_RL.shape[1]
        self.target.k_RKTH[:, :, :length] = k_PKLH.index_select(0, self.prompt_R)
        self.target.v_RKTH[:, :, :length] = v_PKLH.index_select(0, self.prompt_R)
        return k_PKLH, v_PKLH


@dataclass(frozen=True)
class PromptCache:
    """A cache for reading whole prompts from position 0, which fills the rows that continue them.

    Prompts are padded on the right: what the padding writes is overwritten before it is looked at.
    """

    target: KVCache
    prompt_R: torch.Tensor
    """Index of the prompt that each row of the target continues."""

    @property
    def layers(self) -> list[PromptLayer]:
        """The caches of the model's layers, in order."""
        return [PromptLayer(layer, self.prompt_R) for layer in self.target.layers]

    def mask(self, _positions_PL: torch.Tensor) -> None:
        """None: plain causal attention, which every kernel knows without a mask."""
