"""`python -m titan_pt.tools.blackbox RUN_FOLDER`: what the bad steps of a run read and computed.

`components/black_box.py` writes it, in blackbox/ of the run folder.
"""

import sys
from pathlib import Path
from typing import Any

from titan_pt.config.errors import ConfigError
from titan_pt.run.black_boxes import FOLDER, boxes
from titan_pt.run.own_json import read_own
from titan_pt.tools.command import ToolParser, run_tool, whole

_TEXT_CHARACTERS = 300
_PARTS = ("gradients", "weights", "optimizer", "activations")


def main(argv: list[str] | None = None) -> int:
    """Print the black boxes of a run; returns the exit code."""
    return run_tool(lambda: show(argv))


def show(argv: list[str] | None) -> None:
    """Print what the arguments ask for.

    Raises:
        ConfigError: there is no such folder or step.
    """
    parser = ToolParser(prog="python -m titan_pt.tools.blackbox", description=str(__doc__).splitlines()[0])
    parser.add_argument("run", metavar="RUN_FOLDER", help="the run's job.dump_folder")
    parser.add_argument("--step", type=whole(1), help="only this step")
    parser.add_argument("--rows", type=whole(0), default=3, help="rows of each rank, those of the highest loss first")
    parser.add_argument("--layers", type=whole(0), default=8, help="lines of each kind of norms, the largest first")
    options = parser.parse_args(argv)
    run = Path(options.run)
    if not run.is_dir():
        raise ConfigError(f"RUN_FOLDER = {options.run!r}: no such folder")
    found = [box for box in boxes(run) if options.step is None or box.name.split("-")[1] == str(options.step)]
    if not found:
        step = "" if options.step is None else f" of step {options.step}"
        print(f"{run / FOLDER}: no bad step{step} is recorded")
    for box in found:
        print("\n".join(lines(box, options.rows, options.layers)))


def lines(folder: Path, rows: int, layers: int) -> list[str]:
    """A box as text."""
    box = read_own(folder / "box.json")
    found = [
        f"== {folder.name}: {box.get('why', 'box.json cannot be read')}; answer: {box.get('answer')}",
        f"   loss {box.get('loss')}, grad_norm {box.get('grad_norm')}, lr {box.get('lr')}, computed again with the "
        f"weights of step {box.get('weights_of_step')}",
        f"   {len(box.get('documents', []))} documents: {printable(', '.join(box.get('documents', [])))}",
    ]
    for path in sorted(folder.glob("rank-*.json")):
        own = read_own(path)
        texts = sorted(own.get("rows", []), key=lambda row: -height(row.get("loss", 0.0)))
        for row in texts[:rows]:
            pieces = row.get("pieces", [])
            found.append(f"-- {path.stem}, a row of {len(pieces)} texts, loss {row.get('loss', 'not known')}")
            for piece in pieces:
                source = f"{piece['source']}, " if "source" in piece else ""
                loss = f", loss {piece['loss']}" if "loss" in piece else ""
                found.append(f"   [{source}{piece.get('tokens')} tokens{loss}] {printable(piece.get('text', ''))}")
        box.setdefault("activations", {}).update({f"{path.stem} {k}": v for k, v in own.get("activations", {}).items()})
    for part in _PARTS:
        values = box.get(part) or {}
        largest = sorted(values, key=lambda name: (-values[name]["non_finite"], -height(values[name]["rms"])))[:layers]
        if largest:
            found.append(f"-- {part}: {len(values)} in all; non-finite values, norm, root mean square, largest")
        for name in largest:
            told = "  ".join(f"{height(values[name][key]):>10.4g}" for key in ("non_finite", "norm", "rms", "max"))
            found.append(f"   {told}  {name}")
    return found


def height(value: Any) -> float:
    """A number of a box, of which "nan" and "inf" are texts; NaN counts as the highest."""
    number = float(value)
    return float("inf") if number != number else number


def printable(text: str) -> str:
    """The beginning of a foreign text in one line, without what would steer a terminal."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:_TEXT_CHARACTERS])
    return shown + " ..." * (len(text) > _TEXT_CHARACTERS)


if __name__ == "__main__":
    sys.exit(main())
