"""Keys and values of tokens already read, for generation.

Legend: R rows, P prompts, L new tokens of a row, T slots of a row, K key-value heads, H head dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from titan_pt.models.transformer.args import TransformerArgs


class AttendedLayer(Protocol):
    """What one layer's attention needs."""

    def update(
        self, k_RKLH: torch.Tensor, v_RKLH: torch.Tensor, positions_RL: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep the keys and values of new tokens; returns all that these attend to."""
        ...


class Cache(Protocol):
    """What a forward needs."""

    @property
    def layers(self) -> Sequence[AttendedLayer]:
        """One for each layer of the model."""
        ...

    def mask(self, positions_RL: torch.Tensor) -> torch.Tensor | None:
        """Which keys the tokens at these positions see, for `attend`."""
        ...


@dataclass(frozen=True)
class LayerCache:
    """One layer's keys and values; the slot of a token is its position."""

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
    """All layers' caches. Rows have their own lengths: slots above a row's newest position are never looked at, so
    prompts are padded on the right and rows can be copied and dropped freely. Memory is never replaced, only written.
    """

    layers: list[LayerCache]

    @classmethod
    def empty(cls, args: TransformerArgs, rows: int, slots: int, like: torch.Tensor) -> "KVCache":
        """A cache of `slots` positions with the device and type of a tensor."""
        shape = (rows, args.num_kv_heads, slots, args.head_dim)
        # Zeros: what a masked slot holds is multiplied by 0, and 0 * NaN is NaN.
        return cls([LayerCache(like.new_zeros(shape), like.new_zeros(shape)) for _ in range(args.num_layers)])

    @property
    def slots(self) -> int:
        """Positions of a row that attention reads."""
        return self.layers[0].k_RKTH.shape[2]

    def mask(self, positions_RL: torch.Tensor) -> torch.Tensor:
        """mask_R1LT of the tokens at these positions: each sees the slots up to its own."""
        return (torch.arange(self.slots, device=positions_RL.device) <= positions_RL[..., None])[:, None]

    def view(self, rows: slice, slots: int) -> "KVCache":
        """These rows and the first slots of the same memory."""
        return KVCache(
            [LayerCache(layer.k_RKTH[rows, :, :slots], layer.v_RKTH[rows, :, :slots]) for layer in self.layers]
        )

    def keep(self, order_R: torch.Tensor) -> None:
        """Copy these rows to the front."""
        for layer in self.layers:
            for tensor in (layer.k_RKTH, layer.v_RKTH):
                tensor[: order_R.shape[0]] = tensor.index_select(0, order_R)


@dataclass(frozen=True)
class PromptLayer:
    """One layer of a PromptCache."""

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
    """For reading whole prompts from position 0 on: plain causal attention, kept for the rows that go on from them.

    Prompts are padded on the right: what the padding writes is overwritten before it is looked at.
    """

    target: KVCache
    prompt_R: torch.Tensor
    """The prompt that each row of the target goes on from."""

    @property
    def layers(self) -> list[PromptLayer]:
        """As KVCache's."""
        return [PromptLayer(layer, self.prompt_R) for layer in self.target.layers]

    def mask(self, _positions_PL: torch.Tensor) -> None:
        """Plain causal attention, which every kernel knows without a mask."""
