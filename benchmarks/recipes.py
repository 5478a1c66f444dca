"""Trainings for the benchmarks of what a recipe learns: a TOML file with a seed, each in a run folder.

A run that has finished is not trained again, and one that was interrupted goes on: the same command finishes the rest.
"""

import itertools
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import cell

from titan_pt.tools.goodput import all_seconds

RECORD = "benchmark.json"
"""Beside a run's own files: its command, and the time of it so far."""


@dataclass(frozen=True)
class Trained:
    """A run that has finished."""

    losses: Mapping[int, float]
    """Validation loss by the tokens that were read before it."""
    bits_per_byte: float
    seconds: float
    """Of the whole command on the wall, over all its starts."""
    processor_seconds: float
    step_seconds: float
    """Of them on the wall, those in which steps were trained, without start, compilation, validation and saves."""

    @property
    def tokens(self) -> int:
        """Tokens of the run."""
        return max(self.losses)

    @property
    def loss(self) -> float:
        """The last one."""
        return self.losses[self.tokens]


def train(config: Path, folder: Path, seed: int, flags: Sequence[str] = ()) -> Trained:
    """Train a TOML file with a seed in a run folder, or go on there, or read what is there already."""
    arguments = [f"--job.config_file={config}", f"--job.dump_folder={folder}", f"--debug.seed={seed}", *flags]
    path = folder / RECORD
    record = json.loads(path.read_text()) if path.is_file() else {"done": False, "seconds": 0.0, "processor": 0.0}
    if record.setdefault("arguments", arguments) != arguments:
        raise SystemExit(f"{folder}: was trained with other flags, {' '.join(record['arguments'])}; remove it")
    if not record["done"]:
        print(f"{folder}: {' '.join(flags) or 'as the file says'}", file=sys.stderr, flush=True)
        began, before = time.monotonic(), _children()
        code = subprocess.run([sys.executable, "-m", "titan_pt.train", *arguments], stdout=sys.stderr).returncode
        record["seconds"] += time.monotonic() - began
        record["processor"] += _children() - before
        record["done"] = code == 0
        if folder.is_dir():
            path.write_text(json.dumps(record))
        if code:
            raise SystemExit(f"{folder}: exit code {code}; the same command goes on with it")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    validated = [row for row in rows if "val_loss" in row]
    return Trained(
        {row["tokens_seen"]: row["val_loss"] for row in validated},
        validated[-1]["val_bpb"],
        record["seconds"],
        record["processor"],
        all_seconds(folder / "goodput.jsonl")["training"],
    )


def _children() -> float:
    """Processor seconds of all children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def tool(name: str, *arguments: str) -> None:
    """Run a tool of titan_pt to its end."""
    command = [sys.executable, "-m", f"titan_pt.tools.{name}", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


HEADER = "| recipe | seeds | tokens | loss | s | of them steps | processor s |\n|---|---|---|---|---|---|---|"


def row(name: str, runs: Sequence[Trained]) -> str:
    """A Markdown row: medians, with minimum and maximum, but the mean of the losses."""
    losses = [run.loss for run in runs]
    loss = f"{statistics.mean(losses):.3f} ({min(losses):.3f} - {max(losses):.3f})"
    seconds = [cell([getattr(run, key) for run in runs], 0) for key in ("seconds", "step_seconds", "processor_seconds")]
    return f"| {name} | {len(runs)} | {runs[0].tokens:,} | {loss} | {' | '.join(seconds)} |"


def figures(runs: Sequence[Trained]) -> dict[str, Any]:
    """The same for a JSON line, with each run's values and the mean learning curve."""
    curve = {tokens: round(statistics.mean(run.losses[tokens] for run in runs), 4) for tokens in runs[0].losses}
    return {
        "losses": [round(run.loss, 4) for run in runs],
        "seconds": [round(run.seconds) for run in runs],
        "step seconds": [round(run.step_seconds) for run in runs],
        "processor seconds": [round(run.processor_seconds) for run in runs],
        "curve": curve,
    }


def reached(costs: Sequence[float], losses: Sequence[float], target: float) -> float | None:
    """The cost at which runs of growing length end at a loss, by its logarithm between two of them; else None."""
    points = list(zip(costs, losses, strict=True))
    for (less, above), (more, below) in itertools.pairwise(points):
        if above >= target >= below:
            share = (above - target) / (above - below) if above > below else 0.0
            return math.exp(math.log(less) + share * math.log(more / less))
    return None
