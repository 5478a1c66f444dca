"""Muon's entry among the optimizers by name: its keys, which are checked without torch, and how it is built."""

from typing import TYPE_CHECKING, Any

from titan_pt.config.schema.muon import MuonOptimizer
from titan_pt.protocols.optimizer_spec import OptimizerSpec
from titan_pt.protocols.registry import import_attribute

if TYPE_CHECKING:
    import torch
    from torch import nn


def _build(model: "nn.Module", config: Any) -> "torch.optim.Optimizer":
    build = import_attribute("titan_pt.optimizers.muon:build_muon")
    optimizer: torch.optim.Optimizer = build(model, config.optimizer, config.training.mixed_precision_param)
    return optimizer


SPEC = OptimizerSpec(_build, MuonOptimizer)
