"""Command lines that mix a tool's flags with those of a config."""

import argparse
from collections.abc import Callable

from titan_pt.config.manager import load_config
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.tools import command


def run_config_tool(
    parser: command.ToolParser, tool: Callable[[argparse.Namespace, JobConfig], None], argv: list[str] | None
) -> int:
    """Read the tool's flags and the config, and run the tool by `command.run_tool`; returns the exit code."""

    def action() -> None:
        own, rest = parse_own(parser, argv)
        tool(own, load_config(rest))

    return command.run_tool(action)


def parse_own(parser: command.ToolParser, argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The tool's flags, and what is left for the config. Raises a ConfigError where one of that is a flag mistyped."""
    own, rest = parser.parse_known_args(argv)
    if any(word.startswith("--") and "." not in word.partition("=")[0] for word in rest):
        from titan_pt.tools.usage import check_own_flags

        check_own_flags(parser, rest)
    return own, rest
