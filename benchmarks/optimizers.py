"""AdamW against Muon: the loss at equal tokens, and the tokens and seconds that Muon needs to AdamW's loss.

`python benchmarks/optimizers.py --data DIR`, where DIR holds books/ and fineweb/. Both sides try as many rates, with
seed 1 at the whole length; the best of each is trained with the other seeds, and Muon also to shorter lengths, each
with a decay of its own. All is written to outputs/optimizers/; the same command goes on after an interruption. Further
flags are config keys for all runs.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from common import ROOT, cell, environment
from recipes import HEADER, Trained, figures, reached, row, tool, train

FOLDER = Path("outputs/optimizers")
RECIPES = ROOT / "benchmarks" / "optimizers"
VALIDATION_TOKENS = 65536


class Side:
    """An optimizer with its rates, and the flags of all its runs."""

    def __init__(self, name: str, batch_tokens: int, flags: list[str]) -> None:
        self.name, self.best = name, 0.0
        own = [f"--training.global_batch_tokens={batch_tokens}"]
        self._flags = [*own, f"--validation.steps={max(1, VALIDATION_TOKENS // batch_tokens)}", *flags]

    def run(self, rate: float, steps: int, seed: int) -> Trained:
        """One training."""
        folder = FOLDER / f"{self.name}-{rate:g}-{steps}-seed{seed}"
        flags = [f"--optimizer.lr={rate}", f"--training.steps={steps}", *self._flags]
        return train(RECIPES / f"{self.name}.toml", folder, seed, flags)

    def try_rates(self, rates: Sequence[float], steps: int) -> dict[float, float]:
        """Loss by rate, and note the best."""
        losses = {rate: self.run(rate, steps, 1).loss for rate in rates}
        self.best = min(losses, key=lambda rate: losses[rate])
        return losses


def prepare(data: Path) -> None:
    """Show the texts to the TOML files, and make the tokenizer."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    if not (FOLDER / "text").exists():
        (FOLDER / "text").symlink_to(data.resolve(), target_is_directory=True)
    config = f"--job.config_file={RECIPES / 'adamw.toml'}"
    tool("train_tokenizer", config, "--vocab_size=4096", f"--output={FOLDER / 'tokenizer'}")


def ratios(adamw: Sequence[Trained], muon: Sequence[Sequence[Trained]], cost: str) -> list[float]:
    """By seed, how many times as much AdamW cost as Muon to AdamW's last loss; infinite costs are left out."""
    found = []
    for side, lengths in zip(adamw, zip(*muon, strict=True), strict=True):
        costs = [float(getattr(run, cost)) for run in lengths]
        needed = reached(costs, [run.loss for run in lengths], side.loss)
        found += [getattr(side, cost) / needed] if needed else []
    return found


def main() -> None:
    """Tune both sides, then compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = os.environ.get("TITAN_PT_TEST_DATA")
    known = Path(data, "text") if data else None
    parser.add_argument("--data", type=Path, default=known, required=known is None, help="folder of the texts")
    parser.add_argument("--adamw", type=float, nargs="+", default=[4e-3, 8e-3, 16e-3], help="rates to try")
    parser.add_argument("--muon", type=float, nargs="+", default=[4e-3, 8e-3, 16e-3], help="rates to try")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch_tokens", type=int, default=16384)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.2, 0.3, 0.4], help="Muon's shorter lengths")
    options, flags = parser.parse_known_args()
    prepare(options.data)
    sides = {name: Side(name, options.batch_tokens, flags) for name in ("adamw", "muon")}
    tried = {name: side.try_rates(getattr(options, name), options.steps) for name, side in sides.items()}
    print(HEADER)
    seeds = range(1, options.seeds + 1)

    def runs(name: str, steps: int) -> list[Trained]:
        side = sides[name]
        found = [side.run(side.best, steps, seed) for seed in seeds]
        print(row(f"{name}, {side.best:g}", found), flush=True)
        return found

    adamw = runs("adamw", options.steps)
    lengths = [*(round(options.steps * share) for share in sorted(options.shares)), options.steps]
    muon = [runs("muon", steps) for steps in lengths]
    print("\n| to AdamW's loss | times fewer |\n|---|---|")
    found = {cost: ratios(adamw, muon, cost) for cost in ("tokens", "processor_seconds", "step_seconds")}
    for cost, values in found.items():
        print(f"| {cost.replace('_', ' ')} | {cell(values) if values else 'not within these lengths'} |")
    results = {"rates": tried, "adamw": figures(adamw), "muon": [figures(found) for found in muon], "ratios": found}
    print(json.dumps({"benchmark": "optimizers", "command": " ".join(sys.argv), **results, **environment()}))


if __name__ == "__main__":
    main()
