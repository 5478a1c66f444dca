"""Goodput of the quickstart with kills, and a resume's time against the steps that it saves.

`python benchmarks/kills.py --help`
"""

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT, cell, environment, report, spread

CONFIG = ROOT / "train_configs" / "quickstart.toml"


class Attempt:
    """One start of the run, killed behind a step, or left to its end."""

    def __init__(self, run_folder: Path, flags: list[str], kill_at: int | None) -> None:
        command = [sys.executable, "-m", "titan_pt.train", "--job.config_file", str(CONFIG)]
        command += [f"--job.dump_folder={run_folder}", "--metrics.log_freq=1", *flags]
        began, self.log = time.monotonic(), ""
        self.start_seconds, self.step = 0.0, 0
        """Until it trains; the step that it went on from."""
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr
            for line in process.stderr:
                self.log += line
                if found := re.search(r"Training starts at step (\d+)", line):
                    self.start_seconds, self.step = time.monotonic() - began, int(found[1]) - 1
                done = re.search(r" - step: *(\d+)/", line)
                if kill_at is not None and done and int(done[1]) >= kill_at:
                    process.kill()
        self.seconds, self.code = time.monotonic() - began, process.returncode

    @property
    def last_step(self) -> int:
        """The last one that it finished."""
        return max(map(int, re.findall(r" - step: *(\d+)/", self.log)), default=self.step)


def main() -> None:
    """One undisturbed run, then one with kills."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--interval", type=int, default=30, help="steps between two saves")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--short", action="store_true", help="200 steps and 3 kills")
    options = parser.parse_args()
    kills, rng = 3 if options.short else options.kills, random.Random(options.seed)
    flags = [f"--checkpoint.interval={options.interval}", *(["--training.steps=200"] if options.short else [])]
    with tempfile.TemporaryDirectory() as name:
        whole = Attempt(Path(name) / "whole", flags, None)
        assert whole.code == 0, whole.log
        trains = whole.seconds - whole.start_seconds
        attempts = []
        while not attempts or attempts[-1].code != 0:
            place = (len(attempts) + rng.uniform(0.3, 1.0)) / (kills + 1)
            kill_at = int(place * whole.last_step) if len(attempts) < kills else None
            attempts.append(Attempt(Path(name) / "killed", flags, kill_at))
        steps = sum(attempt.last_step - attempt.step for attempt in attempts)
        seconds = sum(attempt.seconds for attempt in attempts)
        command = [sys.executable, "-m", "titan_pt.tools.goodput", str(Path(name) / "killed"), "--json"]
        ledger = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    resumed = [attempt for attempt in attempts[1:] if attempt.step]
    starts = [attempt.start_seconds for attempt in resumed]
    saved = [attempt.step * trains / whole.last_step for attempt in resumed]
    goodput = trains / seconds
    result = {
        "kills": sum(attempt.code != 0 for attempt in attempts),
        "goodput": round(goodput, 3),
        "goodput of the ledger": round(json.loads(ledger.stdout)["goodput"], 3),
        "steps trained again": steps - whole.last_step,
        "seconds of a resume": spread(starts),
        "seconds of the steps it saves": spread(saved),
        **environment(),
    }
    again = result["steps trained again"]
    row = f"| {result['kills']} kills | {goodput:.1%} | {again} | {cell(starts)} | {cell(saved)} |"
    print("| run | goodput | steps trained again | a resume, s | the steps it saves, s |\n|---|---|---|---|---|")
    report("kills", result, row)


if __name__ == "__main__":
    sys.exit(main())
