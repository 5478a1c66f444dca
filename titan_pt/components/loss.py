"""Cross-entropy of the output layer, in chunks of tokens: the logits of all tokens are never held.

torch's own `linear_cross_entropy` is not used: in bfloat16 it sums the loss in bfloat16 (2% off for 2048 tokens),
and on a CPU it is 5 times slower than this (docs/log/training-speed.md).

Legend: T tokens (B x L, flat), D model dim, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F

from titan_pt.config.schema.job_config import JobConfig
from titan_pt.protocols.registry import import_attribute

IGNORED = -100
"""Target of a token that has no loss."""

# Tokens of a chunk are a multiple of this, so that the product of matrices has no part of a tile.
_TILE = 128

Chunk = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
ChunkFunction = Callable[..., Chunk]


@dataclass(frozen=True)
class TokenLosses:
    """Sums and single values over one micro-batch; divide by the global number of tokens."""

    total: torch.Tensor
    """Scalar to call backward on: the sum of cross-entropies and weighted z-losses."""
    cross_entropy_T: torch.Tensor
    """Cross-entropy of each token in nats, 0 where ignored; no gradient."""


@dataclass(frozen=True)
class ChunkedCrossEntropy:
    """A head for `Transformer.forward`: cross-entropy (and z-loss) against `targets_BL`.

    Args:
        z_loss_coef: weight of (log Z)^2 (PaLM, section 5); 0 is off.
        chunk: computes one chunk; `compiled_chunk()` is the same through torch.compile.
        chunk_tokens: most tokens whose logits are held at a time; 0: see `default_chunk_tokens`.
    """

    z_loss_coef: float = 0.0
    chunk: ChunkFunction = field(default_factory=lambda: cross_entropy_chunk)
    chunk_tokens: int = 0

    def head(self, targets_BL: torch.Tensor) -> Callable[[torch.Tensor, torch.Tensor], TokenLosses]:
        """Return the head that computes the losses against these targets."""

        def apply(hidden_BLD: torch.Tensor, weight_VD: torch.Tensor) -> TokenLosses:
            with_gradient = torch.is_grad_enabled()
            total, losses_T = _CrossEntropyFunction.apply(
                hidden_BLD.flatten(0, -2), weight_VD, targets_BL.flatten(), self, with_gradient
            )
            return TokenLosses(total, losses_T)

        return apply


def cross_entropy_chunk(
    hidden_TD: torch.Tensor, weight_VD: torch.Tensor, targets_T: torch.Tensor, z_loss_coef: float, with_gradient: bool
) -> Chunk:
    """Compute (cross_entropy_T, log_z_T, d(total)/d(logits)_TV in the hidden states' type); zero for ignored tokens."""
    return loss_of_logits(F.linear(hidden_TD, weight_VD), targets_T, z_loss_coef, with_gradient)


def loss_of_logits(logits_TV: torch.Tensor, targets_T: torch.Tensor, z_loss_coef: float, with_gradient: bool) -> Chunk:
    """The same of logits, with the gradient in their type."""
    log_p_TV = torch.log_softmax(logits_TV, dim=-1, dtype=torch.float32)
    log_z_T = logits_TV[:, 0].float() - log_p_TV[:, 0]
    kept_T = targets_T != IGNORED
    safe_T1 = torch.where(kept_T, targets_T, 0)[:, None]
    losses_T = torch.where(kept_T, -log_p_TV.gather(-1, safe_T1)[:, 0], 0.0)
    log_z_T = torch.where(kept_T, log_z_T, 0.0)
    if not with_gradient:
        return losses_T, log_z_T, None
    # d CE = softmax - onehot, d (c log_z^2) = 2 c log_z softmax. In place: these are the largest tensors of a step.
    scale_T = torch.where(kept_T, 1.0 + 2.0 * z_loss_coef * log_z_T, 0.0)
    gradient_TV = log_p_TV.exp_().mul_(scale_T[:, None])
    onehot_T1 = kept_T[:, None].to(gradient_TV.dtype)
    if torch.compiler.is_compiling():  # fused with the rest, where a scatter is a pass of its own
        vocabulary_V = torch.arange(logits_TV.shape[-1], device=targets_T.device)
        gradient_TV = gradient_TV - torch.where(vocabulary_V == safe_T1, onehot_T1, 0.0)
    else:
        gradient_TV.scatter_add_(-1, safe_T1, -onehot_T1)
    return losses_T, log_z_T, gradient_TV.to(logits_TV.dtype)


def device_memory(device: torch.device) -> int:
    """Bytes of a GPU; of a CPU as many as give chunks of 256 MiB: larger ones are hardly faster there."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 50 * 2**28


def default_chunk_tokens(memory_bytes: float, vocab_size: int) -> int:
    """Tokens whose logits in float32 fill 2% of a device's memory."""
    return int(memory_bytes) // 50 // (4 * vocab_size)


def chunk_size(tokens: int, most: int) -> int:
    """Tokens of the fewest equal chunks of at most `most` tokens each; whole tiles where a chunk holds one."""
    tile = _TILE if most >= _TILE else 1
    chunks = max(1, -(-tokens // max(1, most // tile * tile)))
    return max(1, -(-tokens // (chunks * tile)) * tile)


def compiled_chunk(backend: str, chunk: ChunkFunction = cross_entropy_chunk) -> ChunkFunction:
    """Return the function fused by torch.compile."""
    return torch.compile(chunk, backend=backend, fullgraph=True)


def build_loss(config: JobConfig, device: torch.device) -> ChunkedCrossEntropy:
    """Cross-entropy with the z-loss of `[training]`, compiled if `[compile]` says so."""
    loss = ChunkedCrossEntropy(config.training.z_loss_coef, chunk_tokens=config.training.loss_chunk_tokens)
    if softcap := getattr(config.model, "logit_softcap", None):
        loss = replace(loss, chunk=import_attribute("titan_pt.components.softcapped_loss:softcapped_chunk")(softcap))
    if config.compile.is_on(device.type) and "loss" in config.compile.components:
        from titan_pt.distributed.compile import check_compiler

        check_compiler(config.compile, device)
        return replace(loss, chunk=compiled_chunk(config.compile.backend, loss.chunk))
    return loss


class _CrossEntropyFunction(torch.autograd.Function):
    """Computes gradients with each chunk's logits in the forward; the backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: torch.Tensor,
        weight_VD: torch.Tensor,
        targets_T: torch.Tensor,
        options: ChunkedCrossEntropy,
        with_gradient: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        most = options.chunk_tokens or default_chunk_tokens(device_memory(hidden_TD.device), weight_VD.shape[0])
        rows = chunk_size(hidden_TD.shape[0], most)
        grad_hidden_TD = torch.empty_like(hidden_TD) if with_gradient else None
        trains_weight = with_gradient and ctx.needs_input_grad[1]  # not under [lora]
        grad_weight_VD = None
        losses, z_terms = [], []
        for start in range(0, hidden_TD.shape[0], rows):
            part = slice(start, start + rows)
            losses_T, log_z_T, gradient_TV = options.chunk(
                hidden_TD[part], weight_VD, targets_T[part], options.z_loss_coef, with_gradient
            )
            losses.append(losses_T)
            z_terms.append(log_z_T)
            if gradient_TV is not None and grad_hidden_TD is not None:
                torch.mm(gradient_TV, weight_VD, out=grad_hidden_TD[part])
            if gradient_TV is not None and trains_weight:
                product_VD = _plus_product(grad_weight_VD, gradient_TV.T, hidden_TD[part])
                grad_weight_VD = product_VD.float() if rows < hidden_TD.shape[0] else product_VD
            del gradient_TV  # before the next one is computed
        ctx.gradients, ctx.weight_dtype = (grad_hidden_TD, grad_weight_VD), weight_VD.dtype
        losses_T = torch.cat(losses)
        total = losses_T.sum()
        if options.z_loss_coef:
            total = total + options.z_loss_coef * torch.cat(z_terms).square().sum()
        ctx.mark_non_differentiable(losses_T)
        return total, losses_T

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("a second backward of one loss: the first scaled its gradients in place")
        (grad_hidden_TD, grad_weight_VD), ctx.gradients = ctx.gradients, None
        total = grads[0]
        # The scale, one over the tokens of a batch, stays in float32: bfloat16 would round it by up to 0.4%.
        return (
            (grad_hidden_TD.float() * total).to(grad_hidden_TD.dtype),
            None if grad_weight_VD is None else grad_weight_VD.float().mul_(total).to(ctx.weight_dtype),
            None,
            None,
            None,
        )


def _plus_product(sum_VD: torch.Tensor | None, a_VT: torch.Tensor, b_TD: torch.Tensor) -> torch.Tensor:
    """The sum of the earlier products and this one, in place and in float32: bfloat16 would lose the small ones."""
    if sum_VD is None:
        return a_VT @ b_TD
    return sum_VD.addmm_(a_VT, b_TD) if a_VT.dtype == sum_VD.dtype else sum_VD.add_(a_VT @ b_TD)
