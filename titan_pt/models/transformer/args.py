"""Architecture of the transformer and its named sizes. No torch here: configs are read without it."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from titan_pt.config.schema.section import Positive, PositiveInt, Section
from titan_pt.config.schema.values import Size

Width = Annotated[int, Field(gt=0, le=1 << 24)]
ROPE_SCALING = ("rope_scaling_factor", "rope_low_freq_factor", "rope_high_freq_factor", "rope_original_seq_len")


class TransformerArgs(Section):
    """A pre-norm decoder: RoPE, optional QK-norm, grouped-query attention, SwiGLU, RMSNorm, no biases."""

    hidden_size: Width
    """Width of the residual stream."""
    num_layers: Annotated[int, Field(gt=0, le=4096)]
    """Blocks."""
    num_heads: Width
    """Query heads."""
    num_kv_heads: Width
    """Key and value heads; divides num_heads (grouped-query attention)."""
    intermediate_size: Width
    """Width of the SwiGLU."""
    vocab_size: Annotated[Size, Field(gt=0, lt=1 << 31)] = 50304
    """Rows of the embedding and of the output layer."""
    num_tokens: PositiveInt | None = None
    """Rows that stand for a token; the logits of the padding rows above are -inf. Unset: all."""
    head_dim: Width = 64
    """Width of a head; even, for RoPE."""
    max_seq_len: Annotated[Size, Field(gt=0)] = 32768
    """Positions the model is made for; training.seq_len may not exceed it."""
    rope_theta: Positive = 10000.0
    """Base of the rotary frequencies."""
    rope_scaling_factor: Positive | None = None
    """Low rotary frequencies are divided by this, as Llama 3.1 does; set with the next three. Unset: none are."""
    rope_low_freq_factor: Positive | None = None
    """Wavelengths above rope_original_seq_len / this are scaled whole; those between are scaled in part."""
    rope_high_freq_factor: Positive | None = None
    """Wavelengths below rope_original_seq_len / this are not scaled."""
    rope_original_seq_len: PositiveInt | None = None
    """Positions the model was made for before its frequencies were scaled."""
    qk_norm: bool = True
    """RMSNorm of each query and key head (Qwen3); off: Llama."""
    qk_norm_placement: Literal["after_rope", "whole"] | None = None
    """qk_norm "after_rope", on rotated heads, or on the "whole" of a token's heads (OLMo 2); unset: as Qwen3 does."""
    attention_softcap: Positive | None = None
    """Scores of the attention are cap * tanh(score / cap) (Gemma 2); slower, as no fused kernel has it. Unset: off."""
    logit_softcap: Positive | None = None
    """The same for the logits, such as 15 or 30. Unset: off."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the embeddings and of each layer's outputs that is zeroed in training, for small data."""
    tie_embeddings: bool = True
    """The embedding is also the output layer."""
    norm_eps: Positive = 1e-6
    """Epsilon of the RMSNorms."""
    init_std: Positive = 0.02
    """Standard deviation of the initial weights; output projections are scaled down by sqrt(2 * num_layers)."""

    @model_validator(mode="after")
    def _fits_together(self) -> "TransformerArgs":
        too_few = self.num_tokens is not None and self.num_tokens > self.vocab_size
        seldom = self.qk_norm_placement or any(getattr(self, name) is not None for name in ROPE_SCALING)
        if self.num_heads % self.num_kv_heads or self.head_dim % 2 or too_few or seldom:
            from titan_pt.models.transformer.arg_checks import check

            check(self, ROPE_SCALING)
        return self

    @property
    def num_embedding_parameters(self) -> int:
        """Parameters of the input embedding."""
        return self.vocab_size * self.hidden_size

    @property
    def num_parameters(self) -> int:
        """All parameters; a tied output layer counts once."""
        attention = 2 * self.hidden_size * self.head_dim * (self.num_heads + self.num_kv_heads)
        normed = self.num_heads + self.num_kv_heads if self.qk_norm_placement == "whole" else 2
        norms = 2 * self.hidden_size + (normed * self.head_dim if self.qk_norm else 0)
        block = attention + 3 * self.hidden_size * self.intermediate_size + norms
        embeddings = self.num_embedding_parameters * (1 if self.tie_embeddings else 2)
        return self.num_layers * block + self.hidden_size + embeddings


def flops_per_token(args: TransformerArgs, seq_len: int) -> float:
    """Floating-point operations of training on one token: 6 N + 12 layers heads head_dim seq_len.

    N counts the output layer once, tied or not, and no input embedding of its own (a lookup). Attention is not
    halved for causality: the convention of PaLM's appendix B, nanoGPT and TorchTitan.
    """
    matmul_parameters = args.num_parameters - (0 if args.tie_embeddings else args.num_embedding_parameters)
    return 6.0 * matmul_parameters + 12.0 * args.num_layers * args.num_heads * args.head_dim * seq_len


FLAVORS: dict[str, TransformerArgs] = {
    "debugmodel": TransformerArgs(hidden_size=256, num_layers=4, num_heads=4, num_kv_heads=2, intermediate_size=704),
    "tiny": TransformerArgs(hidden_size=512, num_layers=12, num_heads=8, num_kv_heads=4, intermediate_size=1408),
    "small": TransformerArgs(hidden_size=768, num_layers=16, num_heads=12, num_kv_heads=4, intermediate_size=2048),
    "medium": TransformerArgs(hidden_size=1024, num_layers=24, num_heads=16, num_kv_heads=4, intermediate_size=2816),
}
