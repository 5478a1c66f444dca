"""nanochat's run for a CPU (its runs/runcpu.sh: depth 6, rows of 512 tokens, 16,384 a step) against titan_pt.

`python benchmarks/nanochat.py --nanochat DIR --data TEXTS`: bits per byte on the same held-out documents after as many
seconds of training. DIR is a checkout with its environment in DIR/.venv; without one the benchmark is skipped. Both
train vocabularies of one size on the same documents. Ours has nanochat's seconds of steps, start and compilation in it.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from common import ROOT, environment
from recipes import tool, train

FOLDER = Path("outputs/nanochat")
CONFIG = ROOT / "benchmarks" / "nanochat.toml"


def documents(files: list[Path]) -> Iterator[str]:
    """The texts of parquet files."""
    for file in files:
        yield from pq.read_table(file, columns=["text"]).column("text").to_pylist()


class Peer:
    """A checkout of nanochat, whose files are all below outputs/nanochat/."""

    def __init__(self, checkout: Path) -> None:
        own = checkout / ".venv" / "bin" / "python"
        self._python, self._checkout = str(own) if own.exists() else sys.executable, checkout
        self._environment = {**os.environ, "NANOCHAT_BASE_DIR": str(FOLDER.resolve()), "WANDB_MODE": "disabled"}

    def run(self, *arguments: str) -> str:
        """What a command of it prints."""
        done = subprocess.run(
            [self._python, *arguments],
            cwd=self._checkout,
            env=self._environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return done.stdout

    def prepare(self, vocab_size: int) -> None:
        """Show our documents to its loader, whose last file is the held-out one, and train its tokenizer."""
        found = self.run("-c", "from nanochat.dataset import DATA_DIR; print(DATA_DIR)")
        folder = Path(found.strip().splitlines()[-1])
        folder.mkdir(parents=True, exist_ok=True)
        for shard in (FOLDER / "texts").glob("*.parquet"):
            link = folder / shard.name
            if not link.exists():
                link.symlink_to(shard.resolve())
        self.run("-m", "scripts.tok_train", f"--vocab-size={vocab_size}")

    def train(self, steps: int) -> tuple[float, float]:
        """(bits per byte at the end, seconds of its steps)."""
        shape = ("--depth=6", "--head-dim=64", "--window-pattern=L", "--max-seq-len=512", "--device-batch-size=32")
        length = ("--total-batch-size=16384", f"--num-iterations={steps}", "--device-type=cpu", "--run=dummy")
        rest = (f"--eval-every={steps}", "--eval-tokens=262144", "--core-metric-every=-1", "--sample-every=-1")
        output = self.run("-m", "scripts.base_train", *shape, *length, *rest)
        losses = re.findall(r"(?:Validation bpb: |val_bpb=)([\d.]+)", output)
        milliseconds = re.findall(r"\| dt: ([\d.]+)ms", output)
        return float(losses[-1]), sum(map(float, milliseconds)) / 1000


def main() -> int:
    """Its run, then ours for as long."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = os.environ.get("TITAN_PT_TEST_DATA")
    known = Path(data, "text/fineweb") if data else None
    parser.add_argument("--nanochat", type=Path, help="a checkout of nanochat")
    parser.add_argument("--data", type=Path, default=known, help="folder of train-*.parquet and val-*.parquet")
    parser.add_argument("--steps", type=int, default=5000, help="of nanochat")
    parser.add_argument("--vocab_size", type=int, default=4096)
    options, flags = parser.parse_known_args()
    if options.nanochat is None:
        print("skipped: give a checkout of nanochat by --nanochat DIR")
        return 0
    for needed in (options.nanochat / "scripts" / "base_train.py", options.data):
        if needed is None or not needed.exists():
            parser.error(f"{needed or '--data'}: does not exist")
    (FOLDER / "texts").mkdir(parents=True, exist_ok=True)
    for number, side in enumerate(("train", "val")):
        table = pa.table({"text": list(documents(sorted(options.data.glob(f"{side}-*.parquet"))))})
        pq.write_table(table, FOLDER / "texts" / f"shard_{number:05d}.parquet", row_group_size=256)
    peer = Peer(options.nanochat.resolve())
    peer.prepare(options.vocab_size)
    theirs, seconds = peer.train(options.steps)
    vocabulary = (f"--vocab_size={options.vocab_size}", f"--output={FOLDER / 'vocabulary'}")
    tool("train_tokenizer", f"--job.config_file={CONFIG}", *vocabulary)
    hours = f"--training.max_hours={seconds / 3600:.6f}"
    ours = train(CONFIG, FOLDER / f"titan_pt-{options.steps}", 1, [hours, *flags])
    print("| after s | nanochat, bits per byte | titan_pt |\n|---|---|---|")
    print(f"| {seconds:.0f} | {theirs:.4f} | {ours.bits_per_byte:.4f} |")
    result = {"seconds": seconds, "nanochat": theirs, "titan_pt": ours.bits_per_byte, "tokens": ours.tokens}
    print(json.dumps({"benchmark": "nanochat", "command": " ".join(sys.argv), **result, **environment()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
