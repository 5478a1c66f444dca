"""An exponential moving average of the weights, kept beside them on the device (training.ema_decay).

Averages over the last steps generalise better than the last weights alone, as a lower learning rate would (Polyak and
Juditsky 1992; Izmailov et al., 1803.05407; Karras et al., 2312.02696). Imported where a run has one.
"""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from titan_pt.components.checkpoint.run_state import model_tensors
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.distributed.init import local_part
from titan_pt.protocols.context import Validator

logger = logging.getLogger("titan_pt")


class AveragedWeights:
    """average = d average + (1 - d) weights after each finished step, with d = min(ema_decay, n / (9 + n)).

    n are the updates before, so that the first weights of a run do not count for long: the warm-up of TensorFlow's
    ExponentialMovingAverage. Sharded and typed as the weights are; no number depends on the ranks. A bad step is left
    out without a look at the device.
    """

    def __init__(self, model: nn.Module, config: JobConfig) -> None:
        self._model, self._decay, self._validates = model, config.training.ema_decay or 0.0, config.validation.weights
        self._averages = {name: torch.empty_like(tensor) for name, tensor in model_tensors(model).items()}
        self._updates = 0

    def tensors(self) -> dict[str, torch.Tensor]:
        """The averages by name of the weight, for a checkpoint; whatever memory held before the first update."""
        return self._averages

    def state_dict(self) -> dict[str, Any]:
        """The rest of the state as JSON."""
        return {"updates": self._updates, "decay": self._decay}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint, whose tensors are loaded; an empty state begins anew at the next update."""
        self._updates = state.get("updates", 0)

    @torch.no_grad()
    def update(self, skipped: torch.Tensor) -> None:
        """Take in the weights of a finished step, unless `skipped` is above 0."""
        share = torch.where(skipped > 0, 0.0, 1.0 - min(self._decay, self._updates / (9 + self._updates)))
        for weight, average in self._pairs():
            if not self._updates or not average.is_floating_point():
                average.copy_(weight)
            else:  # no lerp, whose rounding depends on an element's place in the shard
                average += (weight - average).mul_(share.to(weight.device, non_blocking=True))
        self._updates += 1

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """The model has the averages for weights in this context, in their memory, and its own behind it."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def validate(self, validator: Validator) -> dict[str, float]:
        """The values of a validator for the weights that validation.weights names."""
        if self._validates == "trained" or not self._updates:
            return validator()
        trained = validator() if self._validates == "both" else None
        with self.swapped():
            averaged = validator()
        if trained is None:
            return averaged
        logger.info("Averaged weights: " + "  ".join(f"{name} {value:.4g}" for name, value in averaged.items()))
        return trained | {f"ema/{name}": value for name, value in averaged.items()}

    @torch.no_grad()
    def _swap(self) -> None:
        for weight, average in self._pairs() if self._updates else ():
            before = weight.clone()
            weight.copy_(average)
            average.copy_(before)

    def _pairs(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(weight, average) as this rank holds them. Asking for the weights also frees copies that FSDP2 gathered."""
        for name, tensor in model_tensors(self._model).items():
            yield local_part(tensor), local_part(self._averages[name])
