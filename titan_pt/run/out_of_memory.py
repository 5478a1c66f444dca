"""What is said where memory runs out: what was held, and what lowers it. Imported where it did."""

import resource
import sys
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from titan_pt.trainer import Trainer

_CPU = ("can't allocate memory", "not enough memory")
"""Parts of the messages of torch's allocator of the CPU."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator of a device, of the CPU or of Python gave this error."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(part in str(error) for part in _CPU)


def explain(error: BaseException, trainer: "Trainer | None") -> str:
    """One line: what was asked for, what was held by kind, and three settings that lower it."""
    asked = " ".join(str(error).split()) or "memory is used up"
    if trainer is None:
        return f"out of memory before there was a model on the device ({asked}); {_settings(None, 'parameters')}"
    held = {name: size for name, size in held_bytes(trainer.context).items() if size}
    largest = max(held, key=lambda name: held[name])
    told = ", ".join(f"{name} {_gib(size)}" for name, size in held.items())
    return f"out of memory; this rank held {told} ({asked[:300]}); {_settings(trainer.context, largest)}"


def held_bytes(context: Any) -> dict[str, int]:
    """Bytes of this rank by kind; what the device held beside weights, gradients and optimizer is of the batch."""
    parameters = list(context.model.parameters())
    found = {
        "parameters": sum(_bytes(parameter) for parameter in parameters),
        "gradients": sum(_bytes(p.grad) for p in parameters if p.grad is not None),
        "optimizer state": sum(
            _bytes(value)
            for state in context.optimizer.state.values()
            for value in state.values()
            if isinstance(value, torch.Tensor)
        ),
    }
    device = context.world.device
    if device.type == "cpu":
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return {**found, "the rest of the process, the batch and its activations among it": _rest(peak, found)}
    peak = torch.accelerator.max_memory_allocated(device.index)
    return {**found, "activations and the batch": _rest(peak, found)}


def _rest(peak: int, found: dict[str, int]) -> int:
    return max(0, peak - sum(found.values()))


def _bytes(tensor: torch.Tensor) -> int:
    local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local.numel() * local.element_size()


def _settings(context: Any, largest: str) -> str:
    """Three settings that lower what was held most."""
    of_model = [
        "more ranks (NGPU), which share weights and optimizer state",
        'optimizer.name = "AdamW8bit"',
        "training.enable_cpu_offload = true",
    ]
    if context is None or largest in ("parameters", "gradients", "optimizer state"):
        return f"lower it by {'; '.join(of_model)}"
    config, of_batch = context.config, []
    training = config.training
    if training.local_batch_size > 1:
        of_batch.append(f"training.local_batch_size = {training.local_batch_size // 2}")
    if config.activation_checkpoint.mode != "full":
        of_batch.append('activation_checkpoint.mode = "full"')
    if config.job.trainer == "grpo":
        of_batch.append(f"rollout.max_rows = {max(1, config.rollout.max_rows // 2)}")
    of_batch += [f"training.seq_len = {training.seq_len // 2}", "training.loss_chunk_tokens = 1024", *of_model]
    return f"lower it by {'; '.join(of_batch[:3])}"


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.1f} MiB"
