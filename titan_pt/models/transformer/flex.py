"""Documents kept apart by FlexAttention, on CUDA: the flash kernels take no mask.

Legend: B batch, L sequence, N query heads, K key heads, H head dim.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention


class FlexMask(NamedTuple):
    """Which blocks of tokens see which, for `attend`."""

    blocks: BlockMask

    def attend(
        self, q_BNLH: torch.Tensor, k_BKLH: torch.Tensor, v_BKLH: torch.Tensor, cap: float | None = None
    ) -> torch.Tensor:
        """Compute attention output_BNLH; see `softcap` for the cap."""

        def score(score: torch.Tensor, *_place: torch.Tensor) -> torch.Tensor:
            return score if cap is None else cap * torch.tanh(score / cap)

        # Inside a compiled block it is part of that graph; on its own it must be compiled, or it would hold all scores.
        kernel: Any = flex_attention if torch.compiler.is_compiling() else _compiled_flex()
        options: dict[str, Any] = {"score_mod": score} if cap else {}
        out_BNLH: torch.Tensor = kernel(q_BNLH, k_BKLH, v_BKLH, block_mask=self.blocks, enable_gqa=True, **options)
        return out_BNLH


def flex_mask(positions_BL: torch.Tensor, segments_BL: torch.Tensor | None = None) -> FlexMask:
    """The mask that `attention.document_mask` defines, in blocks."""
    documents_BL = (positions_BL == 0).cumsum(dim=1)
    batch, length = positions_BL.shape

    def visible(b: torch.Tensor, _h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        same = (q >= k) & (documents_BL[b, q] == documents_BL[b, k])
        if segments_BL is None:
            return same
        return same & ((segments_BL[b, k] == 0) | (segments_BL[b, q] == segments_BL[b, k]))

    create = create_block_mask if torch.compiler.is_compiling() else compiled_block_mask()
    return FlexMask(create(visible, batch, None, length, length, device=positions_BL.device))


@functools.cache
def compiled_block_mask() -> Callable[..., BlockMask]:
    """Compiled: uncompiled it would make a score of every pair of tokens."""
    return torch.compile(create_block_mask)


@functools.cache
def _compiled_flex() -> Callable[..., Any]:
    return torch.compile(flex_attention)
