"""The reference of a policy with adapters: the frozen weights themselves."""

import torch
from torch import nn

from titan_pt.config.schema.grpo import Grpo
from titan_pt.lora.adapters import WithoutAdapters
from titan_pt.protocols.parts import OptimizerState
from titan_pt.trainers.grpo.reference import Reference


class BaseReference(Reference):
    """A reference that is no copy and never renewed."""

    def __init__(self, policy: nn.Module, optimizer: OptimizerState, options: Grpo) -> None:
        super().__init__(WithoutAdapters(policy), policy, optimizer, options)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Nothing: the checkpoint names the frozen weights already."""
        return {}

    def copy_policy(self) -> None:
        """Do nothing: new adapters add nothing to the frozen weights."""
