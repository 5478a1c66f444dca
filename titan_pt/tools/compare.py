"""`python -m titan_pt.tools.compare RUN RUN ...`: the keys in which runs differ, and what came of it.

A row is a run where that fits the terminal, otherwise the runs stand side by side. `*` marks the best value.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from titan_pt.config.errors import ConfigError, nearest
from titan_pt.run.tool_files import flag_path
from titan_pt.tools.command import ToolParser, run_tool

if TYPE_CHECKING:
    from titan_pt.report.record import RunRecord

_LONGEST_CELL = 32
_GAP = "  "


def main(argv: list[str] | None = None) -> int:
    """Print the comparison; returns the exit code."""
    return run_tool(lambda: _compare(_parser().parse_args(argv)))


def _parser() -> ToolParser:
    parser = ToolParser(prog="python -m titan_pt.tools.compare", description=__doc__)
    parser.add_argument("runs", metavar="RUN", nargs="+", help="job.dump_folder of a run")
    parser.add_argument("--sort", metavar="COLUMN", help='order of the runs, such as "val loss" or optimizer.lr')
    parser.add_argument("--all", action="store_true", help="all figures, however narrow the terminal is")
    parser.add_argument("--json", action="store_true", help="print one JSON object, with a list of the runs")
    return parser


def _compare(arguments: argparse.Namespace) -> None:
    from titan_pt.report.record import read_runs

    runs = read_runs([flag_path("RUN", run) for run in arguments.runs])
    if arguments.sort is not None:
        runs = _sorted(runs, arguments.sort)
    if arguments.json:
        print(json.dumps({"runs": compared(runs)}, indent=2, ensure_ascii=False, default=str))
        return
    print(comparison_text(runs, shutil.get_terminal_size((100, 24)).columns, everything=arguments.all))
    for run in runs:
        for note in run.notes:
            print(f"{run.name}: {note}", file=sys.stderr)


def compared(runs: Sequence["RunRecord"]) -> list[dict[str, Any]]:
    """Folder, state, differing keys and figures of each run."""
    from titan_pt.report.figures import FIGURES, differing_keys

    keys = differing_keys(runs)
    return [
        {
            "run": run.name,
            "folder": str(run.folder),
            "state": run.state,
            "keys": {key: values[number] for key, values in keys.items()},
            "figures": {f.name: value for f in FIGURES if (value := f.value(run)) is not None},
        }
        for number, run in enumerate(runs)
    ]


def comparison_text(runs: Sequence["RunRecord"], width: int, *, everything: bool = False) -> str:
    """The table of the runs for a terminal of so many columns: differing keys first, then the figures.

    Args:
        everything: all figures, where they fit only with the runs side by side, in several blocks.
    """
    from titan_pt.report.figures import FIGURES, differing_keys
    from titan_pt.report.page import comparison
    from titan_pt.report.record import dump, encodable

    figures, keys = comparison(runs), differing_keys(runs)
    if any(run.state != "finished" for run in runs):
        keys["state"] = [run.state for run in runs]
    rows = []
    for number, row in enumerate(figures["rows"]):
        values = ["-" if values[number] is None else dump(values[number]) for values in keys.values()]
        cells = [f"{cell['text'] or '-'}{'*' if cell['best'] else ''}" for cell in row["cells"]]
        rows.append([row["name"], *values, *cells])
    head = [_short(encodable(name), 2 * _LONGEST_CELL) for name in ("run", *keys, *figures["names"])]
    table = [head, *([_short(encodable(cell)) for cell in row] for row in rows)]
    columns = [list(column) for column in zip(*table, strict=True)]
    side_by_side = [*columns[: 1 + len(keys)], *([[""] * len(table)] if keys else []), *columns[1 + len(keys) :]]
    if _width(table) <= width:
        return _lines(table)
    main = {figure.name for figure in FIGURES if figure.is_main}
    fewer = [column for n, column in enumerate(columns) if n <= len(keys) or column[0] in main]
    table_of_fewer = [list(row) for row in zip(*fewer, strict=True)]
    if not everything and _width(side_by_side) > width >= _width(table_of_fewer):
        left = [name for name in figures["names"] if name not in main]
        return _lines(table_of_fewer) + (f"\n\n--all: also {', '.join(left)}" if left else "")
    blocks: list[str] = []
    begin = 1
    while begin < len(table):  # as many runs side by side as fit, and one in any case
        end = begin + 1
        while end < len(table) and _width([[c[0], *c[begin : end + 1]] for c in side_by_side]) <= width:
            end += 1
        blocks.append(_lines([[column[0], *column[begin:end]] for column in side_by_side]))
        begin = end
    return "\n\n".join(blocks)


def _sorted(runs: list["RunRecord"], column: str) -> list["RunRecord"]:
    rows = compared(runs)
    known = {name: None for row in rows for name in (*row["keys"], *row["figures"])}
    if column not in known:
        raise ConfigError(
            f"--sort = {column!r}: is no column{nearest(column, known)}; there are {', '.join(known) or 'none'}"
        )

    def place(number: int) -> tuple[bool, bool, Any]:
        value = {**rows[number]["keys"], **rows[number]["figures"]}.get(column)
        text = not isinstance(value, int | float)
        return value is None, text, str(value) if text else value

    return [runs[number] for number in sorted(range(len(runs)), key=place)]


def _short(cell: str, longest: int = _LONGEST_CELL) -> str:
    line = " ".join(cell.split())
    return line if len(line) <= longest else f"{line[: longest // 2 - 1]}…{line[-longest // 2 :]}"


def _width(table: Sequence[Sequence[str]]) -> int:
    return sum(max(map(len, column)) for column in zip(*table, strict=True)) + len(_GAP) * (len(table[0]) - 1)


def _lines(table: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    found = []
    for name, *cells in table:
        told = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        found.append(_GAP.join([name.ljust(widths[0]), *told]).rstrip())
    return "\n".join(found)


if __name__ == "__main__":
    sys.exit(main())
