"""nanoGPT's shakespeare-char: the loss on the last tenth of Shakespeare's plays, of several recipes and seeds.

`python benchmarks/shakespeare.py --text input.txt`: 0.8M parameters, characters as tokens, 1.536M of them. A recipe is
a TOML file of benchmarks/shakespeare/. All is written to outputs/shakespeare/; the same command goes on after an
interruption. Further flags are config keys for all runs.
"""

import argparse
import json
import os
import random
import sys
from pathlib import Path

from common import ROOT, environment
from recipes import HEADER, Trained, figures, row, tool, train

FOLDER = Path("outputs/shakespeare")
RECIPES = ROOT / "benchmarks" / "shakespeare"
WINDOWS = 128
"""Windows of a document."""
PASSES = {64: 1, 256: 16}
"""By row length, how often the text is cut into windows, each time at another place, before one comes again."""


def prepare(text_file: Path) -> None:
    """Write the first nine tenths as shuffled windows, the rest whole, and the tokenizer of the characters."""
    text = text_file.read_bytes().decode()
    FOLDER.mkdir(parents=True, exist_ok=True)
    size = int(0.9 * len(text))  # as nanoGPT's prepare.py
    for seq_len, passes in PASSES.items():
        documents = shuffled(text[:size], seq_len + 1, passes)
        lines = [json.dumps({"text": document}) + "\n" for document in documents]
        (FOLDER / f"train-{seq_len}.jsonl").write_text("".join(lines))
    (FOLDER / "val.txt").write_bytes(text[size:].encode())
    config = f"--job.config_file={RECIPES / 'adamw.toml'}"
    tool("train_tokenizer", config, "--characters", f"--output={FOLDER / 'characters'}")


def shuffled(text: str, row: int, passes: int) -> list[str]:
    """Documents of WINDOWS random windows of the text, each window a row of the stream.

    nanoGPT draws windows with replacement; here each comes once a pass. A document's last character gives way to its
    end, so that all documents are whole rows.
    """
    starts = [at for number in range(passes) for at in range(number * row // passes, len(text) - row + 1, row)]
    random.Random(0).shuffle(starts)
    groups = [starts[at : at + WINDOWS] for at in range(0, len(starts), WINDOWS)]
    return ["".join(text[start : start + row] for start in group)[:-1] for group in groups]


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
    prepare(options.text)
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
