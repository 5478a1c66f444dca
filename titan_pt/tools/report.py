"""`python -m titan_pt.tools.report RUN [RUN ...]`: a page with curves, evaluations and rollouts, and REPORT.md.

One run folder is told by itself; several are laid over each other, with the keys of their configs that differ. Both
files are written to `report/` of the first run. The page is one file that needs no network.
"""

import argparse
import logging
import sys

from titan_pt.run.tool_files import flag_path
from titan_pt.tools.command import ToolParser, run_tool, whole

logger = logging.getLogger("titan_pt")

HTML_FILE, MARKDOWN_FILE = "report.html", "REPORT.md"


def main(argv: list[str] | None = None) -> int:
    """Write a report; returns the exit code."""
    return run_tool(lambda: _report(_parser().parse_args(argv)))


def _parser() -> ToolParser:
    parser = ToolParser(prog="python -m titan_pt.tools.report", description=__doc__)
    parser.add_argument("runs", metavar="RUN", nargs="+", help="job.dump_folder of a run")
    parser.add_argument("--output", metavar="DIR", help="folder of the two files (default: report/ of the first run)")
    parser.add_argument(
        "--rollouts",
        metavar="N",
        type=whole(0),
        default=20_000,
        help="most rollouts in the page; of more, those of evenly spread steps (default: %(default)s)",
    )
    return parser


def _report(arguments: argparse.Namespace) -> None:
    from titan_pt.report.markdown import markdown
    from titan_pt.report.page import page, plotting_library
    from titan_pt.report.record import read_runs
    from titan_pt.report.rollouts import read_rollouts
    from titan_pt.run.files import make_writable, write_atomic

    folders = [flag_path("RUN", run) for run in arguments.runs]
    runs = read_runs(folders)
    output = flag_path("--output", arguments.output) if arguments.output else folders[0] / "report"
    make_writable(output, f"--output {output}")
    if not all(plotting_library()):
        logger.warning("The page has no curves: they need `pip install 'titan-pt[report]'`; everything else is in it")
    html = page(runs, read_rollouts(runs, arguments.rollouts))
    for name, text in ((HTML_FILE, html), (MARKDOWN_FILE, markdown(runs, HTML_FILE))):
        write_atomic(output / name, text)
        print(f"{output / name}  {len(text.encode()) / 1e6:.1f} MB")
    for run in runs:
        for note in run.notes:
            logger.warning(f"{run.name}: {note}")


if __name__ == "__main__":
    sys.exit(main())
