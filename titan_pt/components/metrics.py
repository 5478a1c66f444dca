"""A run's numbers: rows of metrics.jsonl, TensorBoard and console lines."""

import json
import logging
import math
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from titan_pt.components.optimizer import group_rates
from titan_pt.config.schema.job_config import Metrics
from titan_pt.protocols.context import StepMetrics, TrainContext, TrainState
from titan_pt.protocols.registry import import_attribute
from titan_pt.run.log_lines import format_seconds
from titan_pt.run.records import AppendedFile, Record
from titan_pt.run.run_folder import METRICS_FILE as FILE

logger = logging.getLogger("titan_pt")

_LOSSES = {"val_loss": "loss {:.4f}", "val_perplexity": "perplexity {:.2f}", "val_bpb": "bits per byte {:.4f}"}


class MetricsWriter:
    """Rank 0's record of a run, one over all restarts.

    What was written about the steps after `last_step` is dropped: they are trained again. A failing disk costs no step.
    """

    def __init__(
        self, run_folder: Path, options: Metrics, last_step: int, world_size: int, sinks: Sequence[Any] = ()
    ) -> None:
        self.path = run_folder / FILE
        self._world_size = world_size
        self._rewards: Any = None
        self.rows, self._file = Record(FILE), AppendedFile(self.path)
        self.rows.write(f"what {FILE} keeps of before", 0, lambda: self.keep(last_step))
        self._sinks: list[Any] = list(sinks)
        if "tensorboard" in options.used_sinks:
            from titan_pt.components.tensorboard import EventLog

            self._sinks.append(EventLog(run_folder / options.save_tb_folder, last_step + 1, world_size))

    def write(self, row: Mapping[str, Any], total_steps: int) -> None:
        """Write one logged step, by the keys of metrics.jsonl.

        Args:
            total_steps: steps that the run will have, as far as is known.
        """
        line = line_of({**row, "time": time.time()}).encode()
        self.rows.write(f"the row of step {row['step']}", len(line), lambda: self._file.append(line))
        self.plot(row)
        self.show(row, total_steps)

    def write_texts(self, texts: Mapping[str, str], step: int) -> None:
        """Show texts, such as samples, in the console and in TensorBoard."""
        for tag, text in texts.items():
            logger.info(f"{tag}:\n{text}")
        for sink in self._sinks if texts else ():
            sink.write_texts(texts, step)

    def close(self) -> None:
        """Write what a failing disk kept back, or tell what is lost."""
        self.rows.close()
        for sink in self._sinks:
            sink.close()

    def keep(self, step: int, line: str = "") -> None:
        """Drop the rows of later steps, and put a line in their place."""
        if line or self.path.exists():
            from titan_pt.components.earlier_rows import keep_rows

            keep_rows(self.path, step, line)
        self._file.size = None

    def show(self, row: Mapping[str, Any], total_steps: int) -> None:
        """Print the row's training, validation and evaluation figures."""
        place = f"step {row['step']:>{len(str(total_steps))}}/{total_steps}"
        if "loss" in row:
            eta = f"eta {format_seconds((total_steps - row['step']) * row['step_seconds'])}"
            if "reward_mean" in row:
                make = import_attribute("titan_pt.components.reward_line:RewardLine")
                self._rewards = self._rewards or make(self.path)
            figures = self._rewards(row) if self._rewards else self._figures(row)
            while len(line := "  ".join([place, eta, *figures])) > 100:  # all of them are in metrics.jsonl
                figures.pop()
            logger.info(line, extra={"row": row, "live": True})
        evaluated = [text.format(row[key]) for key, text in _LOSSES.items() if key in row]
        evaluated += [f"{key[5:]} {value:.4g}" for key, value in row.items() if key.startswith("eval/")]
        if evaluated:
            own = {key: value for key, value in row.items() if key.startswith(("step", "val_", "eval/"))}
            logger.info(f"{place}  validation: {'  '.join(evaluated)}", extra={"row": own})

    def plot(self, row: Mapping[str, Any]) -> None:
        """Give the row to the sinks."""
        for sink in self._sinks:
            sink.write(row)

    def _figures(self, row: Mapping[str, Any]) -> list[str]:
        rate = row["tokens_per_second"] / self._world_size
        return [
            f"loss {row['loss']:.4f}",
            f"grad_norm {row['grad_norm']:.3g}",
            f"lr {row['lr']:.2e}",
            f"{rate:,.0f} tok/s" if rate < 1e6 else f"{rate / 1e6:.2f}M tok/s",
            *([] if row["mfu"] is None else [f"mfu {row['mfu']:.1%}"]),
            f"{row['memory_gib']:.3g} GiB",
        ]


@dataclass
class Interval:
    """The steps since the last logged one. Their tensors are read together, when they are logged or saved."""

    start: float = field(default_factory=time.perf_counter)
    last_end: float = field(default_factory=time.perf_counter)
    paused_seconds: float = 0.0
    save_seconds: float = 0.0
    tokens: int = 0
    data_seconds: float = 0.0
    num_steps: int = 0
    last: StepMetrics = field(init=False)
    unread: list[tuple[int, StepMetrics, Any]] = field(default_factory=list)
    """Steps whose `skipped` was not looked at yet."""

    def add(self, step: int, metrics: StepMetrics, data: Any = None) -> None:
        """Add a finished step; `data` is the state of the data behind it, where it may be needed."""
        self.tokens += metrics.tokens
        self.data_seconds += metrics.data_seconds
        self.num_steps += 1
        self.last_end = time.perf_counter()
        self.last = metrics
        self.unread.append((step, metrics, data))

    def read_bad(self) -> list[tuple[int, StepMetrics, Any, float]]:
        """The bad steps since this was last asked, each with its data and its flag. Waits for the device."""
        unread, self.unread = self.unread, []
        flags = torch.stack([metrics.skipped for _, metrics, _ in unread]).tolist() if unread else []
        return [(*taken, flag) for taken, flag in zip(unread, flags, strict=True) if flag]


class MetricRows:
    """The log rows of a run over all its restarts: numbers are read on all ranks, rows written by rank 0.

    Args:
        peak_flops: FLOP/s of one device at its best, for the MFU; None where it is not known.
    """

    def __init__(self, context: TrainContext[Any], run_folder: Path, peak_flops: float | None) -> None:
        self.context, self._run_folder, self._peak_flops = context, run_folder, peak_flops
        self.writer: MetricsWriter | None = None  # of rank 0, from `open` on
        self.interval = Interval()

    def open(self, last_step: int) -> None:
        """Let rank 0 write from the step after this one on; rows and plots of later steps are dropped."""
        self.close()
        if self.context.world.is_main:
            options, sinks = self.context.config.metrics, []
            if options.used_sinks - {"tensorboard"} or options.prometheus_port:
                sinks = import_attribute("titan_pt.sinks.opening:open_sinks")(self, last_step + 1)
            self.writer = MetricsWriter(self._run_folder, options, last_step, self.context.world.size, sinks)

    def close(self) -> None:
        """Flush and close."""
        if self.writer:
            self.writer.close()

    def write(self, row: Mapping[str, Any], total_steps: int, texts: Mapping[str, str]) -> None:
        """Write a row, and show texts such as samples under their names."""
        if self.writer:
            self.writer.write(row, total_steps)
            self.writer.write_texts(texts, row["step"])

    def make_row(self, state: TrainState) -> dict[str, Any]:
        """The row of this step: the interval's numbers, read from the device. A collective."""
        interval, metrics = self.interval, self.interval.last
        loss, grad_norm = float(metrics.loss), float(metrics.grad_norm)  # waits for the device: time is whole here
        seconds = time.perf_counter() - interval.start - interval.paused_seconds
        tokens_per_second = interval.tokens / seconds
        return {
            "step": state.step,
            "loss": loss,
            "grad_norm": grad_norm,
            "lr": metrics.lr,
            **group_rates(self.context.optimizer, metrics.lr),
            "tokens_seen": state.tokens_seen,
            "tokens_per_second": tokens_per_second,
            "mfu": self._mfu(tokens_per_second),
            "step_seconds": seconds / interval.num_steps,
            "data_seconds": interval.data_seconds / interval.num_steps,
            "memory_gib": memory_gib(self.context.world.device),
            "skipped_steps": state.skipped_steps,
            **({"rewinds": len(rewinds)} if (rewinds := state.guard.get("rewinds")) else {}),
            **({"trained_tokens": state.trained_tokens} if state.trained_tokens < state.tokens_seen else {}),
            **({"save_seconds": interval.save_seconds} if interval.save_seconds else {}),
            **self._extras(metrics),
        }

    def _mfu(self, tokens_per_second: float) -> float | None:
        """Model FLOPs utilisation; None where the peak is not known, or was measured too low on a busy machine."""
        if not self._peak_flops:
            return None
        mfu = tokens_per_second * self.context.flops_per_token / (self._peak_flops * self.context.world.size)
        return mfu if mfu <= 1 else None

    def _extras(self, metrics: StepMetrics) -> dict[str, float]:
        """The step's own values, and each source's tokens and passes over all ranks; NaN means there was none."""
        values = {key: float(value) for key, value in metrics.extra.items()}
        values = {key: value for key, value in values.items() if value == value}
        for progress in self.context.world.gather(self.context.dataloader.progress()):
            for name, (tokens, epochs) in progress.items():
                values[f"source/{name}/tokens"] = values.get(f"source/{name}/tokens", 0) + tokens
                values[f"source/{name}/epochs"] = values.get(f"source/{name}/epochs", 0.0) + epochs
        return values


def line_of(row: Mapping[str, Any]) -> str:
    """A row as a line of metrics.jsonl. JSON has no NaN or infinity: null stands for them, which plots leave out."""
    infinite = [key for key, value in row.items() if isinstance(value, float) and not math.isfinite(value)]
    return json.dumps({**row, **dict.fromkeys(infinite)}) + "\n"


def memory_gib(device: torch.device) -> float:
    """Peak memory of this process: of the allocator on an accelerator, resident on a CPU."""
    if device.type == "cpu":
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
    return torch.accelerator.max_memory_allocated(device.index) / 2**30
