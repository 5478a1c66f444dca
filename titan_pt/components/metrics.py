"""Where a run's numbers go: the console, metrics.jsonl, TensorBoard."""

import json
import logging
import math
import os
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from titan_pt.config.schema.job_config import Metrics
from titan_pt.run.log import terminal_colors

logger = logging.getLogger("titan_pt")

FILE = "metrics.jsonl"

# TorchTitan's TensorBoard names; every other key keeps its own.
TENSORBOARD_TAGS = {
    "loss": "loss_metrics/global_avg_loss",
    "mfu": "mfu(%)",
    "step_seconds": "time_metrics/end_to_end(s)",
    "data_seconds": "time_metrics/data_loading(s)",
    "memory_gib": "memory/max_active(GiB)",
    "tokens_seen": "n_tokens_seen",
    "val_loss": "validation_metrics/loss",
    "val_bpb": "validation_metrics/bits_per_byte",
    "val_perplexity": "validation_metrics/perplexity",
}
_NOT_PLOTTED = ("step", "time", "tokens_per_second")


class MetricsWriter:
    """Rank 0's record of a run, one over all restarts.

    What was written about the steps after `last_step` is dropped: they are trained again. A full disk costs rows, not
    the run.
    """

    def __init__(self, run_folder: Path, options: Metrics, last_step: int, world_size: int) -> None:
        path = run_folder / FILE
        self._world_size = world_size
        self._color = terminal_colors(options.disable_color_printing)
        keep_rows_up_to(path, last_step)
        self._file = path.open("a")
        self._board: Any = None
        if options.enable_tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            folder = run_folder / options.save_tb_folder
            self._board = SummaryWriter(str(folder), purge_step=last_step + 1)

    def write(self, row: Mapping[str, Any], total_steps: int) -> None:
        """One logged step, by the keys of metrics.jsonl."""
        try:
            self._record(row)
        except OSError as error:
            logger.error(f"the row of step {row['step']} could not be written: {error}; training goes on")
        if "loss" in row:
            logger.info(self._line(row, total_steps))
        if "val_loss" in row:
            logger.info(
                f"validate step: {row['step']}  loss: {row['val_loss']:.4f}  "
                f"perplexity: {row['val_perplexity']:.2f}  bits per byte: {row['val_bpb']:.4f}"
            )

        evaluated = "  ".join(f"{key[5:]}: {value:.4g}" for key, value in row.items() if key.startswith("eval/"))
        if evaluated:
            logger.info(f"evaluate step: {row['step']}  {evaluated}")

    def write_texts(self, texts: Mapping[str, str], step: int) -> None:
        """Show texts, such as samples, in the console and in TensorBoard."""
        for tag, text in texts.items():
            logger.info(f"{tag}:\n{text}")
            if self._board is not None:
                self._board.add_text(tag, f"```\n{text}\n```", step)

    def close(self) -> None:
        """Flush and close."""
        for record in (self._file, self._board):
            try:
                if record is not None:
                    record.close()
            except OSError as error:
                logger.error(f"the last rows could not be written: {error}")

    def _record(self, row: Mapping[str, Any]) -> None:
        self._file.write(json.dumps({key: _json_number(value) for key, value in row.items()}) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        if self._board is not None:
            self._plot(row)

    def _plot(self, row: Mapping[str, Any]) -> None:
        step = row["step"]
        values = {TENSORBOARD_TAGS.get(key, key): value for key, value in row.items() if key not in _NOT_PLOTTED}
        if row.get("mfu") is not None:
            values["mfu(%)"] = 100 * row["mfu"]
        if "loss" in row:  # not the row before training
            values["throughput(tps)"] = row["tokens_per_second"] / self._world_size
            values["time_metrics/data_loading(%)"] = 100 * row["data_seconds"] / max(row["step_seconds"], 1e-9)
        for tag, value in values.items():
            if value is not None:
                self._board.add_scalar(tag, value, step)
        self._board.flush()

    def _line(self, row: Mapping[str, Any], total_steps: int) -> str:
        color = self._color
        mfu = "" if row["mfu"] is None else f"  {color.magenta}mfu: {100 * row['mfu']:.2f}%"
        eta = format_seconds((total_steps - row["step"]) * row["step_seconds"])
        return (
            f"{color.red}step: {row['step']:>{len(str(total_steps))}}/{total_steps}  "
            f"{color.green}loss: {row['loss']:7.4f}  {color.yellow}grad_norm: {row['grad_norm']:7.4f}  "
            f"{color.cyan}lr: {row['lr']:.2e}  {color.blue}memory: {row['memory_gib']:.2f}GiB  "
            f"tps: {row['tokens_per_second'] / self._world_size:,.0f}{mfu}  {color.green}eta: {eta}{color.reset}"
        )


def keep_rows_up_to(path: Path, step: int) -> None:
    """Drop the rows of later steps, and a last line that was cut off, from a metrics file."""
    if not path.exists():
        return
    kept = [line for line in path.read_text(errors="replace").splitlines() if _step_of(line) <= step]
    temporary = path.with_suffix(".jsonl.tmp")
    temporary.write_text("".join(f"{line}\n" for line in kept))
    os.replace(temporary, path)


def _step_of(line: str) -> float:
    """The step of a row; infinity where the line is not a whole row."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def memory_gib(device: torch.device) -> float:
    """Peak memory of this process: of the allocator on an accelerator, resident on a CPU."""
    if device.type == "cpu":
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
    return torch.accelerator.max_memory_allocated(device.index) / 2**30


def format_seconds(seconds: float) -> str:
    """Such as "1d 02:03:04", "02:03:04" or "03:04"."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    clock = f"{hours:02}:{minutes:02}:{rest:02}" if hours or days else f"{minutes:02}:{rest:02}"
    return f"{days}d {clock}" if days else clock


def _json_number(value: Any) -> Any:
    """JSON has no NaN or infinity: null stands for them, which plots leave out."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
