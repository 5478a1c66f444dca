"""Recompute activations in the backward instead of keeping them."""

import functools
from typing import Any

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from titan_pt.config.schema.job_config import ActivationCheckpoint

aten = torch.ops.aten
# Costly to compute again and small next to what is recomputed from them (norms, rotations, SiLU times up).
SAVED_OPS = {
    aten.mm.default,
    aten.addmm.default,
    aten._scaled_mm.default,  # of float8
    aten.max.default,  # what its scales are made of: one number a tensor
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.higher_order.flex_attention,
}


@functools.cache
def _saved_ops() -> set[Any]:
    """SAVED_OPS with the kernel of documents, which only some versions of torch have; asked for at every operation."""
    varlen = getattr(torch.ops.torch_attn, "_varlen_attn", None)
    return SAVED_OPS | ({varlen.default} if varlen else set())


def apply_activation_checkpoint(blocks: nn.ModuleList, config: ActivationCheckpoint) -> None:
    """Wrap the blocks, in place, as a `mode` of `[activation_checkpoint]` other than "none" says."""
    every = 1 if config.mode == "full" or config.selective_ac_option == "op" else int(config.selective_ac_option)
    options: dict[str, Any] = {}
    if config.mode == "selective" and config.selective_ac_option == "op":
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _policy)
    for i, block in enumerate(blocks):
        if i % every == 0:
            # The model draws no random numbers, so there is no state to restore for the second forward.
            blocks[i] = checkpoint_wrapper(block, preserve_rng_state=False, **options)


def _policy(_context: Any, op: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in _saved_ops() else CheckpointPolicy.PREFER_RECOMPUTE
