"""`python -m titan_pt.tools.goodput RUN_FOLDER`: where the time of a run went, over all its restarts."""

import argparse
import json
import sys

from titan_pt.config.errors import ConfigError
from titan_pt.run.goodput import all_seconds, goodput_of
from titan_pt.run.ledger import LEDGER_FILE
from titan_pt.run.log_lines import format_seconds
from titan_pt.run.tool_files import flag_path
from titan_pt.tools.command import ToolParser, run_tool


def main(argv: list[str] | None = None) -> int:
    """Print the account of a run folder; returns the exit code."""
    return run_tool(lambda: _print(_parser().parse_args(argv)))


def _parser() -> ToolParser:
    parser = ToolParser(prog="python -m titan_pt.tools.goodput", description=__doc__)
    parser.add_argument("run_folder", metavar="RUN_FOLDER", help="job.dump_folder of the run")
    parser.add_argument("--json", action="store_true", help="one JSON object: goodput, seconds of each kind")
    return parser


def _print(arguments: argparse.Namespace) -> None:
    path = flag_path("RUN_FOLDER", arguments.run_folder) / LEDGER_FILE
    if not path.is_file():
        raise ConfigError(f"RUN_FOLDER: {path} does not exist; give the job.dump_folder of a run")
    seconds = all_seconds(path)
    if arguments.json:
        print(json.dumps({"goodput": goodput_of(seconds), "seconds": seconds}))
        return
    total = sum(seconds.values())
    print(f"goodput {goodput_of(seconds):.1%} of {format_seconds(total)}")
    for kind, value in sorted(seconds.items(), key=lambda item: -item[1]):
        print(f"{kind:12} {value:12,.1f} s {value / (total or 1):6.1%}")


if __name__ == "__main__":
    sys.exit(main())
