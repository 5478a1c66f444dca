"""Seconds from a command to its end: help, a step, a compiled step. `python benchmarks/startup.py --help`"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT, alternate, cell, environment, report, spread

QUICKSTART = ("--training.steps=1", "--validation.enable=false", "--checkpoint.enable=false")
COMPILED = (*QUICKSTART, "--compile.enable=true")


def run(*command: str, **variables: str) -> float:
    """Seconds of a command that must succeed."""
    start = time.perf_counter()
    subprocess.run(
        [str(ROOT / "run_train.sh"), *command], env={**os.environ, **variables}, check=True, capture_output=True
    )
    return time.perf_counter() - start


def main() -> None:
    """Measure in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--short", action="store_true", help="two repetitions, nothing compiled")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, number = Path(name), iter(range(1000))

        def train(*flags: str, cache: str) -> float:
            run_folder = folder / str(next(number))
            return run(f"--job.dump_folder={run_folder}", *flags, TORCHINDUCTOR_CACHE_DIR=str(folder / cache))

        sides = {
            "--help": lambda: run("--help"),
            "a quickstart of one step, whole": lambda: train(*QUICKSTART, cache="warm"),
        }
        if not options.short:
            sides |= {
                "the same, compiled, warm cache": lambda: train(*COMPILED, cache="warm"),
                "the same, compiled, cold cache": lambda: train(*COMPILED, cache=f"cold-{next(number)}"),
            }
        seconds = alternate(sides, 2 if options.short else options.repetitions)
    print("| command | seconds |\n|---|---|")
    for what, values in seconds.items():
        report("startup", {"what": what, "seconds": spread(values), **environment()}, f"| {what} | {cell(values)} |")


if __name__ == "__main__":
    sys.exit(main())
