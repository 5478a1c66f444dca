"""A model's tensors by the names that checkpoints use."""

import torch
from torch import nn

from titan_pt.distributed.init import parameter_name


def model_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers, sharded where the model is; a tied weight once."""
    tensors: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[parameter_name(name)] = tensor.detach()
    return tensors
