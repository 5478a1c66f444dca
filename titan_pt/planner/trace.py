"""Follows one step: the memory that is alive, and the kernels that run. Tensors need no numbers."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from titan_pt.planner.memory import LiveMemory
from titan_pt.planner.operations import COLLECTIVES, KernelLog

_aten = torch.ops.aten
_DEVICE = torch.ops.prim.device.default
_NO_KERNELS = ("prim", "profiler")
_SHARDING = ("fsdp", *COLLECTIVES)


class StepTrace(TorchDispatchMode):
    """A mode for one micro-batch and its update; nothing is assumed of how the model is sharded.

    Args:
        kernels: where to note the kernels; the memory alone without it.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, kernels: KernelLog | None = None) -> None:
        super().__init__()
        self.memory = LiveMemory()
        self._model, self._optimizer, self._kernels = model, optimizer, kernels
        self._in_loss = self._after_backward = False
        self._hooks = contextlib.ExitStack()

    def __enter__(self) -> "StepTrace":
        parameters = list(self._model.parameters())
        self.memory.own("parameters", (*parameters, *self._model.buffers()))
        states = (value for state in self._optimizer.state.values() for value in state.values())
        self.memory.own("optimizer", (value for value in states if isinstance(value, torch.Tensor)))
        self.memory.own("gradients", (parameter.grad for parameter in parameters if parameter.grad is not None))
        self._hooks.enter_context(self.memory.follow_resizes())
        for hook in (
            self._model.register_forward_pre_hook(self._mark_loss, with_kwargs=True),
            self._optimizer.register_step_pre_hook(self._begin_update),
        ):
            self._hooks.callback(hook.remove)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._hooks.close()
        if self._kernels:
            self._kernels.close()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is _DEVICE and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # two of three calls ask this; FakeTensorMode takes longer to say the same
        kwargs = kwargs or {}
        if DTensor in types:
            return NotImplemented  # its operations on the tensors inside are seen
        if func.namespace in _NO_KERNELS:
            return func(*args, **kwargs)
        inputs = [value for value in tree_iter((args, kwargs)) if isinstance(value, torch.Tensor)]
        if self._kernels:
            self._kernels.begin(func)
        out = func(*args, **kwargs)
        outputs = [value for value in tree_iter(out) if isinstance(value, torch.Tensor)]
        self.memory.see(inputs, outputs, self._kind())
        if func.namespace in _SHARDING:
            self.memory.rename((*inputs, *outputs), "communication")
        if self._kernels:
            self._kernels.note(func, args, inputs, outputs)
        return out

    def _kind(self) -> str:
        if torch._C._current_graph_task_id() != -1:
            self._after_backward = True
        if self._after_backward:
            return "temporary"
        return "logits" if self._in_loss else "activations"

    def _begin_update(self, *_: Any) -> None:
        self.memory.own("gradients", (p.grad for p in self._model.parameters() if p.grad is not None))
        if self._kernels:
            self._kernels.begin_update()

    def _mark_loss(self, _model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """A forward pre-hook of the model, whose argument `head` computes the loss."""
        return (
            tuple(self._marked(value) if _is_head(value) else value for value in args),
            {name: self._marked(value) if _is_head(value) else value for name, value in kwargs.items()},
        )

    def _marked(self, head: Callable[..., Any]) -> Callable[..., Any]:
        def run(*inputs: Any) -> Any:
            self._in_loss = True
            try:
                return head(*inputs)
            finally:
                self._in_loss = False

        return run


def _is_head(value: Any) -> bool:
    return callable(value) and not isinstance(value, torch.Tensor)
