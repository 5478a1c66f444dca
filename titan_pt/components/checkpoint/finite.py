"""Whether the tensors of a step are finite."""

from collections.abc import Mapping

import torch
from torch.distributed.tensor import DTensor


@torch.no_grad()
def first_not_finite(tensors: Mapping[str, torch.Tensor], *, own_optimizer: bool = False) -> str | None:
    """Name of this rank's first floating tensor with NaN or Inf, by its largest magnitude: no copies, one read.

    Not looked at: counts and other single numbers of an optimizer, and types of 8 bits, which are codes.

    Args:
        own_optimizer: of a plugin's, in whose state Inf may mean "none yet"; NaN is bad all the same.
    """
    names: list[str] = []
    flags: list[torch.Tensor] = []
    for name, tensor in tensors.items():
        local, of_optimizer = (
            tensor.to_local() if isinstance(tensor, DTensor) else tensor,
            name.startswith("optimizer."),
        )
        if not local.is_floating_point() or local.element_size() == 1 or not local.numel():
            continue
        if of_optimizer and local.ndim == 0:
            continue
        peak = torch.linalg.vector_norm(local, float("inf"))
        names.append(name)
        flags.append(peak.isnan() if of_optimizer and own_optimizer else ~peak.isfinite())
    if not flags:
        return None
    device = max((flag.device for flag in flags), key=lambda device: device.type != "cpu")
    bad = torch.stack([flag.to(device, non_blocking=True) for flag in flags]).tolist()
    return next((name for name, is_bad in zip(names, bad, strict=True) if is_bad), None)
