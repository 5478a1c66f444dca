"""QK-norm in other places than Qwen3's; imported where model.qk_norm_placement is set."""

import torch
from torch import nn

from titan_pt.models.transformer.args import TransformerArgs
from titan_pt.models.transformer.model import Attention, RMSNorm, Rope, apply_rope


class PlacedAttention(Attention):
    """Attention with QK-norm on rotated heads (nanochat), or on all heads of a token at once (OLMo 2, 2501.00656)."""

    def __init__(self, args: TransformerArgs, sdpa_backend: str) -> None:
        super().__init__(args, sdpa_backend)
        self.placement = args.qk_norm_placement
        if self.placement == "whole":
            self.q_norm = RMSNorm(args.num_heads * args.head_dim, eps=args.norm_eps)
            self.k_norm = RMSNorm(args.num_kv_heads * args.head_dim, eps=args.norm_eps)

    def _rotated(self, x: torch.Tensor, norm: nn.Module, rope: Rope) -> torch.Tensor:
        if self.placement == "whole":
            return apply_rope(self._heads(norm(x)).transpose(1, 2), rope)
        rotated: torch.Tensor = norm(apply_rope(self._heads(x).transpose(1, 2), rope))
        return rotated
