"""`titan-pt ls`: the experiments that come with the package, by the name that `titan-pt train NAME` takes."""

import re
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

from titan_pt.config.resolve.toml_files import tomllib
from titan_pt.config.shipped import FOLDERS, described, experiments, folder
from titan_pt.tools.command import ToolParser, run_tool

_COLUMNS = 100


def main(argv: list[str] | None = None) -> int:
    """Print the shipped experiments; returns the exit code."""
    return run_tool(lambda: _list(argv))


def _list(argv: list[str] | None) -> None:
    parser = ToolParser(prog="python -m titan_pt.tools.ls", description=__doc__)
    parser.add_argument("--names", action="store_true", help="the names alone, a line each")
    arguments = parser.parse_args(argv)
    found = experiments()
    if arguments.names:
        print("\n".join(found))
        return
    parts = {name for name in found if name.startswith(("base_", "presets/"))}
    width = max(map(len, found), default=0) + 2
    for title, names in (("", found.keys() - parts), ("\nFor the extends of an experiment:", parts)):
        print(title, end="\n" if title else "")
        print(
            "\n".join(f"{name:{width}}{_shortened(described(found[name]), _COLUMNS - width)}" for name in sorted(names))
        )
    print("\nChains, each run from the one before:")
    print("\n".join(f"  {' -> '.join(chain)}" for chain in _chains(found)))
    print(f"\nThey are in {folder() / 'train_configs'}. To change one: titan-pt cp quickstart mine.toml")
    print(f"titan-pt cp copies {' and '.join(f'{name}/' for name in FOLDERS)} too.")


def _chains(found: Mapping[str, Path]) -> list[list[str]]:
    """Experiments that start from each other's weights, from the first to each last one."""
    before = {name: start for name in found if (start := _start(name, found)) and not name.startswith("base_")}
    chains = []
    for name in before.keys() - set(before.values()):
        chain = [name]
        while chain[0] in before:
            chain.insert(0, before[chain[0]])
        chains.append(chain)
    return sorted(chains)


def _start(name: str, found: Mapping[str, Path]) -> str | None:
    """The experiment whose run is the start of this one, here or in a file that it extends."""
    if name not in found:
        return None
    tables = tomllib.loads(found[name].read_text(encoding="utf-8"))
    if path := tables.get("checkpoint", {}).get("initial_load_path"):
        start = path.removeprefix("outputs/")
        return start if start in found else None
    below = tables.get("extends", [])
    names = [below] if isinstance(below, str) else below
    return next(filter(None, (_start(file.removesuffix(".toml"), found) for file in reversed(names))), None)


def _shortened(text: str, columns: int) -> str:
    """The clauses of a sentence that fit into a line."""
    if len(text) <= columns:
        return text
    ends = [match.start() for match in re.finditer(r"[,;:.?] ", text[: columns - 3])]
    ends = [end for end in ends if text[:end].count("(") == text[:end].count(")")]
    return text[: ends[-1]] if ends else textwrap.shorten(text, columns, placeholder=" ...")


if __name__ == "__main__":
    sys.exit(main())
