"""nanoGPT's shakespeare-char: the loss on the last tenth of Shakespeare's plays, of several recipes and seeds.

`python benchmarks/shakespeare.py --text input.txt`: 0.8M parameters, characters as tokens, 1.536M of them. A recipe is
a TOML file of benchmarks/shakespeare/. All is written to outputs/shakespeare/; the same command goes on after an
interruption. Further flags are config keys for all runs.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from common import ROOT, environment
from recipes import HEADER, Trained, figures, row, tool, train

FOLDER = Path("outputs/shakespeare")
RECIPES = ROOT / "benchmarks" / "shakespeare"
DOCUMENT = 1000
"""Characters of a document. The text is cut into such, so that the rows of a batch are of different places; each ends
in one token more, 0.1% of all."""


def prepare(text_file: Path, seq_len: int) -> None:
    """Write the first nine tenths as documents, the rest whole, and the tokenizer of the characters."""
    text = text_file.read_bytes().decode()
    FOLDER.mkdir(parents=True, exist_ok=True)
    size = int(0.9 * len(text))  # as nanoGPT's prepare.py
    documents = [text[i : min(i + DOCUMENT, size)] for i in range(0, size, DOCUMENT)]
    (FOLDER / "train.jsonl").write_text("".join(json.dumps({"text": part}) + "\n" for part in documents))
    (FOLDER / "val.txt").write_bytes(text[size:].encode())
    config = f"--job.config_file={RECIPES / 'adamw.toml'}"
    tool("train_tokenizer", config, "--characters", f"--output={FOLDER / 'characters'}")


def main() -> None:
    """Train each recipe with each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = os.environ.get("TITAN_PT_TEST_DATA")
    known = Path(data, "text/tinyshakespeare/input.txt") if data else None
    parser.add_argument("--text", type=Path, default=known, required=known is None, help="tiny Shakespeare's input.txt")
    parser.add_argument("--recipes", nargs="+", default=["adamw_published", "adamw", "muon"], metavar="NAME")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each recipe, from seed 1 on")
    parser.add_argument("--steps", type=int, nargs="+", default=[2000], help="lengths of the runs")
    parser.add_argument("--short", action="store_true", help="20 steps, one seed")
    options, flags = parser.parse_known_args()
    lengths, seeds = ([20], 1) if options.short else (options.steps, options.seeds)
    prepare(options.text, 64)
    results = {}
    print(HEADER)
    for recipe in options.recipes:
        for steps in lengths:
            runs: list[Trained] = []
            for seed in range(1, seeds + 1):
                folder = FOLDER / f"{recipe}-{steps}-seed{seed}"
                runs.append(train(RECIPES / f"{recipe}.toml", folder, seed, [f"--training.steps={steps}", *flags]))
            results[f"{recipe}, {steps} steps"] = figures(runs)
            print(row(recipe, runs), flush=True)
    print(json.dumps({"benchmark": "shakespeare", "command": " ".join(sys.argv), **results, **environment()}))


if __name__ == "__main__":
    main()
