"""Makes a dry run on the CPU take the memory of CUDA's fused kernels.

torch's fake tensors cannot stand for a device that its build does not have. On the CPU a norm is many kernels that keep
two copies in float32, and attention between documents needs a mask of L x L.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from titan_pt.models.transformer import Transformer


@contextlib.contextmanager
def cuda_kernels() -> Iterator[None]:
    """A context in which norms and causal attention of modules keep for the backward what CUDA's kernels keep.

    The output layer of sampling and of log-probabilities takes bfloat16 as it is, without a copy in float32, and Muon
    orthogonalises in it.
    """
    from titan_pt.generation import decode
    from titan_pt.optimizers import orthogonal
    from titan_pt.trainers.grpo import logprobs

    kernels, known, known_type = _CudaKernels(), decode.has_mixed_product, orthogonal.product_type
    orthogonal.product_type = lambda *_: torch.bfloat16
    decode.has_mixed_product = logprobs.has_mixed_product = lambda weight: weight.dtype == torch.bfloat16
    hooks = (
        register_module_forward_pre_hook(kernels.enter_module),
        register_module_forward_hook(kernels.leave_module, always_call=True),
    )
    try:
        yield
    finally:
        decode.has_mixed_product = logprobs.has_mixed_product = known
        orthogonal.product_type = known_type
        for hook in hooks:
            hook.remove()


class _CudaKernels(TorchFunctionMode):
    """Replaces norms and attention in forwards of modules.

    A mode of the whole step would miss what activation checkpointing runs again: torch turns modes off in a backward.
    """

    _depth = 0

    def enter_module(self, module: nn.Module, _args: Any) -> None:
        """A forward pre-hook of every module; the outermost one turns the mode on."""
        if isinstance(module, Transformer):
            # FlexAttention's blocks take next to nothing, nor does a cap in it; it keeps what flash keeps.
            module.document_mask, module.args = False, module.args.model_copy(update={"attention_softcap": None})
        self._depth += 1
        if self._depth == 1:
            self.__enter__()

    def leave_module(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        """A forward hook of every module, called also where the forward raised."""
        self._depth -= 1
        if self._depth == 0:
            self.__exit__(None, None, None)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.rms_norm:
            return _rms_norm(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return _flash_attention(*args, **kwargs)
        return func(*args, **kwargs)


class _RmsNorm(torch.autograd.Function):
    """Keeps its input and one number a row, as `_fused_rms_norm` does."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight, x.new_empty(x.shape[:-1], dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)


def _rms_norm(
    x: torch.Tensor, shape: Sequence[int], weight: torch.Tensor | None = None, eps: float | None = None
) -> torch.Tensor:
    return F.rms_norm(x, shape, weight, eps) if weight is None else _RmsNorm.apply(x, weight)


def _flash_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attn_mask: torch.Tensor | None = None, **options: Any
) -> torch.Tensor:
    if attn_mask is not None or not options.get("is_causal"):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, **options)
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, True)[0]
