"""Spikes of the loss, judged on the device without waiting for it (training.spike_zscore)."""

from typing import Any

import torch

from titan_pt.config.schema.job_config import Training

_OF_A_NORMAL = 1.4826
"""Standard deviations of a normal distribution in its median absolute deviation."""
_LEAST_SPREAD = 1e-3
"""Of the median: the losses of a few steps may be equal."""


class LossSpikes:
    """Scores of losses against the median and the median absolute deviation of those before.

    Losses of bad steps do not count, so that one spike does not hide the next, and a NaN does not stay in the window.
    """

    def __init__(self, options: Training) -> None:
        self._threshold, self._size = options.spike_zscore or 0.0, options.spike_window
        self._losses = torch.zeros(self._size)
        self._count = torch.zeros((), dtype=torch.int64)

    def judge(self, loss: torch.Tensor, skipped: torch.Tensor) -> torch.Tensor:
        """Return `skipped`, or the loss's score where it is a spike; add the loss of a good step to the window."""
        device = loss.device
        losses, count = self._losses.to(device, non_blocking=True), self._count.to(device, non_blocking=True)
        slots = torch.arange(self._size, device=device)
        known = torch.where(slots < count, losses, float("nan"))
        median = known.nanmedian()
        spread = _OF_A_NORMAL * (known - median).abs().nanmedian()
        score = (loss.float() - median) / spread.clamp(min=1e-12).maximum(_LEAST_SPREAD * median.abs())
        spikes = (count >= self._size // 2) & (score > self._threshold)
        found = torch.where((skipped == 0) & spikes, score, skipped)
        good = found == 0
        self._losses = torch.where((slots == count % self._size) & good, loss.float(), losses)
        self._count = count + good
        return found

    def state_dict(self) -> dict[str, Any]:
        """The window as JSON; waits for the device."""
        count = int(self._count)
        return {"losses": self._losses[:count].tolist(), "count": count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a window; an empty state begins anew, and so does one of another size."""
        losses = state.get("losses", [])
        self._losses, self._count = torch.zeros(self._size), torch.zeros((), dtype=torch.int64)
        if len(losses) == min(self._size, state.get("count", 0)):
            self._losses[: len(losses)] = torch.tensor(losses)
            self._count.fill_(state.get("count", 0))
