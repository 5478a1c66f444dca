"""The attention kernels of a run: the one that was asked for, and on CUDA the best that are installed."""

import functools
import importlib.util
import logging

import torch

from titan_pt.config.errors import ConfigError, one_of
from titan_pt.models.transformer.attention import BACKENDS, attend, uses_flex
from titan_pt.models.transformer.model import Transformer
from titan_pt.models.transformer.varlen import knows_varlen

logger = logging.getLogger("titan_pt")

# Kernels that torch takes over from a package, by the devices' major compute capability: (torch's name, the package).
FLASH_PACKAGES = {9: ("FA3", "flash_attn_interface"), 10: ("FA4", "flash_attn.cute")}


def choose_kernels(model: Transformer, backend: str, device: torch.device, dtype: torch.dtype) -> None:
    """Check model.sdpa_backend; on CUDA take the newest flash kernels, and varlen_attn for documents, where they are.

    Args:
        dtype: type of the hidden states.

    Raises:
        ConfigError: the device lacks the kernel that was asked for.
    """
    cap = model.args.attention_softcap
    if backend != "auto" and cap:
        raise ConfigError(
            f"model.sdpa_backend = {backend!r}: has no caps, and model.attention_softcap = {cap:g}; set auto"
        )
    if backend != "auto":
        check_backend(backend, device.type, dtype, model.args.head_dim)
    if not uses_flex(device):
        return
    activate_flash(device)
    model.varlen = not cap and knows_varlen(device.type, dtype, model.args.head_dim)
    if model.document_mask and backend != "auto":
        logger.warning(
            f"model.sdpa_backend = {backend!r}: has no effect on training with training.document_mask, whose kernels "
            "on CUDA are varlen_attn and FlexAttention"
        )


def activate_flash(device: torch.device) -> str | None:
    """Let torch use the newest flash kernels that are installed for this device; returns their name, if there are any.

    flash-attn-3 is for Hopper, flash-attn-4 for Blackwell; torch's own are flash-attn-2.
    """
    activate = getattr(torch.nn.attention, "activate_flash_attention_impl", None)
    if device.type != "cuda" or torch.version.hip or activate is None:
        return None
    major, _ = torch.cuda.get_device_capability(device)
    name, package = FLASH_PACKAGES.get(major, ("", ""))
    if not all(package and importlib.util.find_spec(part) for part in (package.partition(".")[0], package)):
        return None
    try:
        activate(name)
    except (ImportError, ValueError, RuntimeError) as error:  # this torch does not know it, or the build does not fit
        logger.warning(
            f"{package} is installed, but torch cannot use it ({error}); attention takes torch's own kernels"
        )
        return None
    logger.info(f"Attention: {name} of {package}")
    return name


def check_backend(backend: str, device_type: str, dtype: torch.dtype, head_dim: int) -> None:
    """Raise a ConfigError that names the kernels this device has, if `backend` is not one of them."""
    available = available_backends(device_type, dtype, head_dim)
    if backend not in available:
        name = str(dtype).removeprefix("torch.")
        raise ConfigError(
            f"model.sdpa_backend = {backend!r}: this device ({device_type}, {name}, head_dim {head_dim}) has "
            f"{one_of(available)}; or use auto"
        )


@functools.cache
def available_backends(device_type: str, dtype: torch.dtype, head_dim: int) -> tuple[str, ...]:
    """Kernels that run a forward and a backward on this device, found by trying."""
    return tuple(name for name in BACKENDS if _runs(name, device_type, dtype, head_dim))


def _runs(backend: str, device_type: str, dtype: torch.dtype, head_dim: int) -> bool:
    q = torch.zeros(1, 2, 16, head_dim, device=device_type, dtype=dtype, requires_grad=True)
    kv = torch.zeros(1, 1, 16, head_dim, device=device_type, dtype=dtype)
    try:
        attend(q, kv, kv, None, backend).sum().backward()
    except RuntimeError:
        return False
    return True
