"""What a kind of training gives a dry run and the planner. Imported by these alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from titan_pt.protocols.context import Step


@dataclass(frozen=True)
class DryRunStep:
    """The step of a kind of training in a dry run, on synthetic data whose tensors hold no numbers."""

    step: Step
    """Does one micro-batch and one update; it may read no number of a tensor."""
    batch: str
    """The batch of a real step over all ranks, in words."""
    accumulates: bool
    """Whether a real step has several micro-batches: there are gradients already when the last one is computed."""
    held: Mapping[str, Sequence[torch.Tensor]] = field(default_factory=dict)
    """Tensors beside model and optimizer that stay in memory, by their purpose."""
    sampling_bytes: int = 0
    """Bytes of a rank that exist only while it samples completions."""
    notes: Sequence[str] = ()
    """Notes on what the dry run covers, for the log."""
