"""A run's log rows: the numbers of the steps since the last one, read from the device together, written by rank 0."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from titan_pt.components.metrics import MetricsWriter, memory_gib
from titan_pt.protocols.context import StepMetrics, TrainContext, TrainState

logger = logging.getLogger("titan_pt")


@dataclass
class Interval:
    """The steps since the last logged one. Their tensors are read together, when they are logged or saved."""

    start: float = field(default_factory=time.perf_counter)
    paused_seconds: float = 0.0
    tokens: int = 0
    data_seconds: float = 0.0
    num_steps: int = 0
    last: StepMetrics = field(init=False)
    unread: list[tuple[int, StepMetrics]] = field(default_factory=list)
    """Steps whose `skipped` was not looked at yet."""

    def add(self, step: int, metrics: StepMetrics) -> None:
        """A finished step."""
        self.tokens += metrics.tokens
        self.data_seconds += metrics.data_seconds
        self.num_steps += 1
        self.last = metrics
        self.unread.append((step, metrics))


class MetricRows:
    """The rows of metrics.jsonl, TensorBoard and the console, over all restarts.

    Args:
        flops_per_second: peak of all ranks together, for the MFU; None where unknown.
        flops_per_token: of training.
    """

    def __init__(
        self, context: TrainContext, run_folder: Path, *, flops_per_second: float | None, flops_per_token: float
    ) -> None:
        self._context, self._run_folder = context, run_folder
        self._flops_per_second, self._flops_per_token = flops_per_second, flops_per_token
        self._writer: MetricsWriter | None = None
        self.interval = Interval()
        self.row: dict[str, Any] = {}
        """The last row; `owed` while it is not written, `validated` where it has a validation."""
        self.owed = self.validated = False

    def open(self, last_step: int) -> None:
        """Rank 0 writes from the step after this one on; what was written about later steps is dropped."""
        self.close()
        if self._context.world.is_main:
            options = self._context.config.metrics
            self._writer = MetricsWriter(self._run_folder, options, last_step, self._context.world.size)

    def close(self) -> None:
        """Flush and close."""
        if self._writer:
            self._writer.close()

    def write(self, total_steps: int) -> None:
        """Write the row, which is then no longer owed.

        Args:
            total_steps: those that the run will have, as far as is known.
        """
        self.owed = False
        if self._writer:
            self._writer.write({**self.row, "time": time.time()}, total_steps)

    def write_texts(self, texts: Mapping[str, str], step: int) -> None:
        """Show texts, such as samples, under their names."""
        if self._writer:
            self._writer.write_texts(texts, step)

    def make_row(self, state: TrainState) -> None:
        """Read the interval's numbers from the device into a row, which is owed from now on."""
        interval, metrics = self.interval, self.interval.last
        self.count_skipped(state)
        loss, grad_norm = float(metrics.loss), float(metrics.grad_norm)  # waits for the device: time is whole here
        seconds = time.perf_counter() - interval.start - interval.paused_seconds
        tokens_per_second = interval.tokens / seconds
        self.row = {
            "step": state.step,
            "loss": loss,
            "grad_norm": grad_norm,
            "lr": metrics.lr,
            "tokens_seen": state.tokens_seen,
            "tokens_per_second": tokens_per_second,
            "mfu": self._mfu(tokens_per_second),
            "step_seconds": seconds / interval.num_steps,
            "data_seconds": interval.data_seconds / interval.num_steps,
            "memory_gib": memory_gib(self._context.world.device),
            "skipped_steps": state.skipped_steps,
            **({"trained_tokens": state.trained_tokens} if state.trained_tokens < state.tokens_seen else {}),
            **self._extras(metrics),
        }
        self.owed, self.validated = True, False

    def count_skipped(self, state: TrainState) -> None:
        """Count and report the steps that were not applied since this was last asked."""
        unread, self.interval.unread = self.interval.unread, []
        flags = torch.stack([metrics.skipped for _, metrics in unread]).tolist() if unread else []
        for (step, metrics), flag in zip(unread, flags, strict=True):
            if flag:
                state.skipped_steps += 1
                logger.error(
                    f"step {step}: loss or gradient is not finite; weights are unchanged; its documents on this rank: "
                    f"{', '.join(metrics.documents) or 'unknown'}"
                )

    def _mfu(self, tokens_per_second: float) -> float | None:
        """None where the peak is not known, or was measured too low on a busy machine: no figure, not a wrong one."""
        if self._flops_per_second is None:
            return None
        mfu = tokens_per_second * self._flops_per_token / self._flops_per_second
        return mfu if mfu <= 1 else None

    def _extras(self, metrics: StepMetrics) -> dict[str, float]:
        """The step's own values, and each source's tokens and passes over all ranks; NaN means there was none."""
        values = {key: float(value) for key, value in metrics.extra.items()}
        values = {key: value for key, value in values.items() if value == value}
        for progress in self._context.world.gather(self._context.dataloader.progress()):
            for name, (tokens, epochs) in progress.items():
                values[f"source/{name}/tokens"] = values.get(f"source/{name}/tokens", 0) + tokens
                values[f"source/{name}/epochs"] = values.get(f"source/{name}/epochs", 0.0) + epochs
        return values
