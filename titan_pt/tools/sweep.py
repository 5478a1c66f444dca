"""`python -m titan_pt.tools.sweep TOML --grid a.b=1,2 --grid c.d=x,y`: train every combination of values.

Each point of the grid is a run folder of its own. The same command goes on with what is unfinished, with more values it
adds their points, and it ends in a table of them all. Further flags, such as --training.steps 100, hold for all points.
"""

import argparse
import shlex
import shutil
import sys

from titan_pt.config.errors import ConfigError, shown
from titan_pt.config.resolve.flags import read_flags
from titan_pt.run.exit_codes import ExitCode
from titan_pt.run.tool_files import flag_path
from titan_pt.sweeps.grid import SEED, Point, points_of, read_grid
from titan_pt.tools.arguments import parse_own
from titan_pt.tools.command import ToolParser, run_tool, whole


def main(argv: list[str] | None = None) -> int:
    """Run the sweep; returns the exit code: of the worst point, or 75 where a signal stopped it."""
    codes: list[int] = []
    failed = run_tool(lambda: codes.append(_sweep(*parse_own(_parser(), argv))))
    return failed or codes[0]


def _parser() -> ToolParser:
    parser = ToolParser(
        prog="python -m titan_pt.tools.sweep", usage="%(prog)s TOML --grid KEY=VALUE,VALUE ...", description=__doc__
    )
    parser.add_argument("--grid", metavar="KEY=VALUE,VALUE", action="append", default=[], help="a key and its values")
    parser.add_argument("--seeds", metavar="N", type=whole(1), help=f"N runs a point, from {SEED} on")
    parser.add_argument("--jobs", metavar="N", type=whole(1), default=1, help="runs at a time (default: 1)")
    parser.add_argument("--output", metavar="FOLDER", help="folder of the runs (default: job.dump_folder and _sweep)")
    parser.add_argument("--print", action="store_true", help="print the command and the state of each point, no more")
    return parser


def _sweep(own: argparse.Namespace, rest: list[str]) -> int:
    arguments = _single_run(rest)
    grid = read_grid(own.grid)
    if not grid and own.seeds is None:
        raise ConfigError("--grid: missing; give it a key and its values, such as --grid optimizer.lr=1e-3,1e-2")
    if own.seeds is not None and SEED in grid:
        raise ConfigError(f"--seeds and --grid {SEED}: give one of them")
    output = None if own.output is None else str(flag_path("--output", own.output))
    points = points_of(arguments, grid, own.seeds, output)
    from titan_pt.sweeps.runs import Runs, last_code, state_of, stops, unfinished

    left = unfinished(points)
    if own.print:
        for point in points:
            print(f"{_command(arguments, point)}  # {state_of(point)}")
        return ExitCode.DONE
    from titan_pt.run.files import make_writable
    from titan_pt.run.run_folder import lock_run_folder

    folder = points[0].folder.parent
    make_writable(folder, f"--output {folder}")
    with lock_run_folder(folder), stops() as stopped:
        if left:
            from titan_pt.sweeps.checks import check_points

            check_points(left, stopped)
        Runs(left, own.jobs, stopped).run()
    _print_comparison(points)
    if stopped():
        return ExitCode.PREEMPTED
    codes = [last_code(point) for point in points]
    if all(code in (ExitCode.DONE, ExitCode.GAVE_UP) for code in codes):
        return max(ExitCode(code) for code in codes if code is not None)
    return ExitCode.FAILED


def _print_comparison(points: list[Point]) -> None:
    """What `tools.compare` prints of the points that have begun, and how far the others are."""
    from titan_pt.report.record import read_runs
    from titan_pt.run.run_folder import CONFIG_FILE
    from titan_pt.sweeps.runs import last_code, state_of
    from titan_pt.tools.compare import comparison_text

    begun = [point for point in points if (point.folder / CONFIG_FILE).exists()]
    if begun:
        width = shutil.get_terminal_size((100, 24)).columns
        print(comparison_text(read_runs([point.folder for point in begun]), width))
    for point in points:
        if last_code(point) != ExitCode.DONE:
            print(f"{point.name}: {state_of(point)}")


def _single_run(rest: list[str]) -> list[str]:
    """The arguments of one run: its TOML file, named with or without a flag, and its other flags."""
    given = read_flags(rest)
    files = [text for name, text in given if name in ("", "job.config_file")]
    if len(files) > 1:
        raise ConfigError(f"{shown(files[1])}: a second TOML file; a sweep has one")
    if not files:
        raise ConfigError("TOML: missing; name the experiment, such as quickstart or mine.toml")
    flags = ((name or "job.config_file", text) for name, text in given)
    return [f"--{name}" if text is None else f"--{name}={text}" for name, text in flags]


def _command(arguments: list[str], point: Point) -> str:
    return shlex.join(
        ["python", "-m", "titan_pt.launch", "--standalone", "-m", "titan_pt.train", *arguments, *point.flags]
    )


if __name__ == "__main__":
    sys.exit(main())
