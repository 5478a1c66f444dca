"""Tokens per second of one rank and of two, a CPU core each. `python benchmarks/scaling.py [--short]`

Runs of the launcher, in turns; the batch of a rank is the same, so that perfect scaling is a factor of two.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from common import ROOT, cell, environment, report, spread


def tokens_per_second(ranks: int, folder: Path, steps: int) -> float:
    """The median of a run's rows, without the first."""
    import json

    flags = (
        f"--job.dump_folder={folder}",
        "--model.flavor=debugmodel",
        "--training.local_batch_size=4",
        f"--training.global_batch_size={8 * ranks}",  # two micro-batches a rank
        "--training.seq_len=256",
        "--training.mixed_precision_param=float32",
        f"--training.steps={steps}",
        '--data.sources=[{name="arithmetic"}]',
        "--tokenizer.name=byte",
        "--model.vocab_size=50304",
        "--activation_checkpoint.mode=none",
        "--metrics.log_freq=1",
        "--checkpoint.enable=false",
    )
    environment = {**os.environ, "NGPU": str(ranks), "OMP_NUM_THREADS": "1"}
    subprocess.run([ROOT / "run_train.sh", *flags], env=environment, check=True, capture_output=True)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(row["tokens_per_second"] for row in rows[3:])


def main() -> None:
    """Measure in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--short", action="store_true", help="two repetitions of few steps")
    options = parser.parse_args()
    repetitions, steps = (2, 10) if options.short else (options.repetitions, 24)
    speeds: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(repetitions):
            for ranks, found in speeds.items():
                found.append(tokens_per_second(ranks, Path(folder) / f"{turn}-{ranks}", steps))
    factors = [two / one for one, two in zip(speeds[1], speeds[2], strict=True)]
    result = {
        "tokens_per_second": {ranks: spread(values, 0) for ranks, values in speeds.items()},
        "factor": spread(factors),
        **environment(),
    }
    row = f"| 1 -> 2 ranks | {cell(speeds[1], 0)} | {cell(speeds[2], 0)} | {cell(factors)} |"
    print("| | 1 rank, tokens/s | 2 ranks | factor |\n|---|---|---|---|")
    report("scaling", result, row)


if __name__ == "__main__":
    sys.exit(main())
