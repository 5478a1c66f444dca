"""The transformer: the Qwen3 architecture, or Llama's with `qk_norm = false`.

Parameter names are Hugging Face's without their "model." prefix.

Legend: B batch, L sequence, D model dim, N query heads, K key-value heads, H head dim, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from titan_pt.distributed.init import fill_keyed, fill_truncated_normal
from titan_pt.models.transformer.args import TransformerArgs
from titan_pt.models.transformer.attention import Mask, attend, document_mask
from titan_pt.protocols.registry import import_attribute

_PLACED = "titan_pt.models.transformer.qk_norm:PlacedAttention"
_CAPPED, _DROPOUT = "titan_pt.models.transformer.softcap:capped", "titan_pt.models.transformer.dropout"

Head = Callable[[torch.Tensor, torch.Tensor], Any]
Rope = tuple[torch.Tensor, torch.Tensor]
CachedAttention = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Takes the keys and values of new tokens and returns all keys and values to attend to."""


def rope_table(args: TransformerArgs, device: torch.device | None = None) -> Rope:
    """cos and sin of position x frequency, each (max_seq_len, H/2) in float32 (RoFormer, 2104.09864, eq. 15)."""
    exponents = torch.arange(0, args.head_dim, 2, device=device, dtype=torch.float32) / args.head_dim
    frequencies = 1.0 / args.rope_theta**exponents
    if args.rope_scaling_factor is not None:
        from titan_pt.models.transformer.rope_scaling import scale_frequencies

        frequencies = scale_frequencies(frequencies, args)
    angles = torch.outer(torch.arange(args.max_seq_len, device=device, dtype=torch.float32), frequencies)
    return angles.cos(), angles.sin()


def apply_rope(x_BNLH: torch.Tensor, rope: Rope) -> torch.Tensor:
    """Rotate the pairs (i, i + H/2) by their position's angle; cos and sin are of x's type, and broadcast."""
    cos, sin = rope
    first, second = x_BNLH.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Linear(nn.Linear):
    """A product without a bias in the type of its input, whatever the type of the weight."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class RMSNorm(nn.RMSNorm):
    """RMSNorm (1910.07467) in the type of its input, whatever the type of the weight."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    """Grouped-query attention (2305.13245) with an RMSNorm on each query and key head (2302.05442)."""

    def __init__(self, args: TransformerArgs, sdpa_backend: str) -> None:
        super().__init__()
        self.head_dim, self.sdpa_backend = args.head_dim, sdpa_backend
        q_size, kv_size = args.num_heads * args.head_dim, args.num_kv_heads * args.head_dim
        self.q_proj = Linear(args.hidden_size, q_size)
        self.k_proj = Linear(args.hidden_size, kv_size)
        self.v_proj = Linear(args.hidden_size, kv_size)
        self.o_proj = Linear(q_size, args.hidden_size)
        self.q_norm = RMSNorm(args.head_dim, eps=args.norm_eps) if args.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(args.head_dim, eps=args.norm_eps) if args.qk_norm else nn.Identity()

    def forward(
        self, x_BLD: torch.Tensor, rope: Rope, mask: Mask, cached: CachedAttention | None = None
    ) -> torch.Tensor:
        q_BNLH = self._rotated(self.q_proj(x_BLD), self.q_norm, rope)
        k_BKLH = self._rotated(self.k_proj(x_BLD), self.k_norm, rope)
        v_BKLH = self._heads(self.v_proj(x_BLD)).transpose(1, 2)
        if cached is not None:  # the keys and values of the tokens before these come from the cache
            k_BKLH, v_BKLH = cached(k_BKLH, v_BKLH)
        out_BNLH = attend(q_BNLH, k_BKLH, v_BKLH, mask, self.sdpa_backend)
        return self.o_proj(out_BNLH.transpose(1, 2).flatten(2))

    def _rotated(self, x: torch.Tensor, norm: nn.Module, rope: Rope) -> torch.Tensor:
        return apply_rope(norm(self._heads(x)).transpose(1, 2), rope)

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (-1, self.head_dim))


class SiluTimes(torch.autograd.Function):
    """silu(gate) * up. The backward computes silu(gate) again, to the bit, so that it need not be kept."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate) * up

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grads[0] * up, gate), grads[0] * F.silu(gate)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (2002.05202)."""

    def __init__(self, args: TransformerArgs) -> None:
        super().__init__()
        self.gate_proj = Linear(args.hidden_size, args.intermediate_size)
        self.up_proj = Linear(args.hidden_size, args.intermediate_size)
        self.down_proj = Linear(args.intermediate_size, args.hidden_size)

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        return self.down_proj(SiluTimes.apply(self.gate_proj(x_BLD), self.up_proj(x_BLD)))


class Block(nn.Module):
    """One layer: attention, then SwiGLU, each on normalized input and added to it."""

    def __init__(self, args: TransformerArgs, sdpa_backend: str) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(args.hidden_size, eps=args.norm_eps)
        attention = import_attribute(_PLACED) if args.qk_norm_placement else Attention
        self.self_attn = attention(args, sdpa_backend)
        self.post_attention_layernorm = RMSNorm(args.hidden_size, eps=args.norm_eps)
        self.mlp = SwiGLU(args)

    def forward(
        self, x_BLD: torch.Tensor, rope: Rope, mask: Mask, cached: CachedAttention | None = None
    ) -> torch.Tensor:
        x_BLD = x_BLD + self.self_attn(self.input_layernorm(x_BLD), rope, mask, cached)
        return x_BLD + self.mlp(self.post_attention_layernorm(x_BLD))


class Transformer(nn.Module):
    """A decoder-only language model.

    Args:
        args: the architecture.
        sdpa_backend: kernel of the attention, see `attention.BACKENDS`, or "auto".
        document_mask: keep packed documents apart; the forward then needs positions.

    The weights are used in `compute_type`, by a cast at each use. FSDP2 gathers them in that type, so it stays None.
    """

    compute_type: torch.dtype | None = None
    noise = (0, 0)  # (seed, finished steps), by which dropout is keyed
    rope_cos: torch.Tensor
    rope_sin: torch.Tensor

    def __init__(self, args: TransformerArgs, *, sdpa_backend: str = "auto", document_mask: bool = False) -> None:
        super().__init__()
        self.args, self.document_mask = args, document_mask
        self.varlen = False  # whether to do that by varlen_attn: `parallelize` asks the device
        self.embed_tokens = nn.Embedding(args.vocab_size, args.hidden_size)
        block = import_attribute(f"{_DROPOUT}:DroppingBlock") if args.dropout else Block
        self.layers = nn.ModuleList(block(args, sdpa_backend) for _ in range(args.num_layers))
        self.norm = RMSNorm(args.hidden_size, eps=args.norm_eps)
        if not args.tie_embeddings:
            self.lm_head = Linear(args.hidden_size, args.vocab_size)
        cos, sin = rope_table(args)
        self.register_buffer("rope_cos", cos, persistent=False)
        self.register_buffer("rope_sin", sin, persistent=False)

    def forward(
        self,
        tokens_BL: torch.Tensor,
        positions_BL: torch.Tensor | None = None,
        head: Head | None = None,
        segments_BL: torch.Tensor | None = None,
    ) -> Any:
        """Return logits_BLV, or `head(hidden_BLD, weight_VD)` where a head is given.

        The head runs inside the forward because only there FSDP holds the output layer's whole weight: a loss can
        take it in chunks without ever holding the logits.

        Args:
            tokens_BL: token ids.
            positions_BL: position of each token in its document; None: 0..L-1.
            segments_BL: parts of a document that do not see each other, see `attention.document_mask`.
        """
        embedding_VD, output_VD = self.tables()
        x_BLD = F.embedding(tokens_BL, embedding_VD)
        rope, mask = self.rope(tokens_BL.shape[1], positions_BL, x_BLD.dtype), None
        if self.document_mask and positions_BL is not None:
            mask = document_mask(positions_BL, segments_BL, varlen=self.varlen)
        if self.args.attention_softcap:
            mask = import_attribute(_CAPPED)(mask, self.args.attention_softcap, tokens_BL, trains=True)
        layers: Any = self.layers
        if self.training and self.args.dropout:
            x_BLD, layers = import_attribute(f"{_DROPOUT}:with_dropout")(self, tokens_BL, x_BLD)
        for layer in layers:
            x_BLD = layer(x_BLD, rope, mask)
        return (head or self.logits)(self.norm(x_BLD), output_VD)

    @property
    def output_weight(self) -> torch.Tensor:
        """weight_VD of the output layer."""
        return self.embed_tokens.weight if self.args.tie_embeddings else self.lm_head.weight

    def tables(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights of embedding and output layer; a tied one is cast once: its gradients add up as under FSDP2."""
        embedding_VD = self.embed_tokens.weight
        embedding_VD = embedding_VD.to(self.compute_type or embedding_VD.dtype)
        return embedding_VD, embedding_VD if self.args.tie_embeddings else self.lm_head.weight.to(embedding_VD.dtype)

    def logits(self, hidden_BLD: torch.Tensor, weight_VD: torch.Tensor) -> torch.Tensor:
        """Compute logits_BLV; rows that only pad the vocabulary are -inf, so that no sampler can choose them."""
        logits_BLV = F.linear(hidden_BLD, weight_VD)
        if cap := self.args.logit_softcap:
            logits_BLV = cap * torch.tanh(logits_BLV.float() / cap)
        if self.args.num_tokens is None:
            return logits_BLV
        padding_V = torch.arange(self.args.vocab_size, device=logits_BLV.device) >= self.args.num_tokens
        return logits_BLV.masked_fill(padding_V, float("-inf"))

    def rope(self, length: int, positions_BL: torch.Tensor | None, dtype: torch.dtype) -> Rope:
        """cos and sin of the positions in the hidden states' type: cast here once, not in every layer."""
        if positions_BL is None:
            return self.rope_cos[:length].to(dtype), self.rope_sin[:length].to(dtype)
        # One axis for the heads: (B, 1, L, H/2).
        return self.rope_cos[positions_BL][:, None].to(dtype), self.rope_sin[positions_BL][:, None].to(dtype)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Fill parameters and buffers. Each parameter's numbers depend on (seed, its name) alone."""
        residual_std = self.args.init_std / (2 * self.args.num_layers) ** 0.5

        def draw(name: str, full: torch.Tensor, generator: torch.Generator) -> None:
            if name.endswith("norm.weight"):
                full.fill_(1.0)
                return
            std = residual_std if name.endswith(("o_proj.weight", "down_proj.weight")) else self.args.init_std
            fill_truncated_normal(full, std, 3.0, generator)

        fill_keyed(self, seed, draw)
        self.init_buffers()

    def init_buffers(self) -> None:
        """Fill the buffers alone, for weights that are loaded; in float32 whatever the parameters are."""
        self.rope_cos, self.rope_sin = rope_table(self.args, self.rope_cos.device)
