"""Whether the tensors of a step are finite."""

from collections.abc import Mapping

import torch

from titan_pt.distributed.init import local_part


@torch.no_grad()
def first_not_finite(tensors: Mapping[str, torch.Tensor], *, own_optimizer: bool = False) -> str | None:
    """Name of this rank's first floating tensor with NaN or Inf: no copies, one read of the device.

    A sum is finite only where all numbers are; where it is not, which may be an overflow, they are looked at again.
    Not looked at: counts and other single numbers of an optimizer, and types of 8 bits, which are codes.

    Args:
        own_optimizer: of a plugin's, in whose state Inf may mean "none yet"; NaN is bad all the same.
    """
    looked_at = {
        name: local
        for name, tensor in tensors.items()
        if (local := local_part(tensor)).is_floating_point()
        and local.element_size() > 1
        and not (local.ndim == 0 and name.startswith("optimizer."))
    }
    finite = [local.sum().isfinite() for local in looked_at.values()]
    device = next((flag.device for flag in finite if flag.device.type != "cpu"), torch.device("cpu"))
    flags = torch.stack([flag.to(device) for flag in finite]).tolist() if finite else []
    for name in (name for name, flag in zip(looked_at, flags, strict=True) if not flag and looked_at[name].numel()):
        peak = torch.linalg.vector_norm(looked_at[name], float("inf"))
        if peak.isnan() or (peak.isinf() and not (own_optimizer and name.startswith("optimizer."))):
            return name
    return None
