"""A tool's own flags beside those of the config."""

import argparse
import sys
from collections.abc import Callable

from titan_pt.components.log import init_logging, quiet_libraries
from titan_pt.config.errors import ConfigError
from titan_pt.config.job_config import JobConfig
from titan_pt.config.manager import load_config
from titan_pt.outcome import ExitCode


def run_tool(
    parser: argparse.ArgumentParser, tool: Callable[[argparse.Namespace, JobConfig], None], argv: list[str] | None
) -> int:
    """Read both kinds of flags and run the tool; returns the exit code."""
    init_logging()
    quiet_libraries()
    try:
        own, rest = parser.parse_known_args(argv)
        tool(own, load_config(rest))
    except ConfigError as error:
        print(error.report(), file=sys.stderr)
        return ExitCode.USAGE
    return ExitCode.DONE
