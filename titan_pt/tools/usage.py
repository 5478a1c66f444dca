"""What is wrong with the flags of a tool, and what to type instead. Imported where something is."""

import argparse
import re
from collections.abc import Iterator

from titan_pt.components.checkpoint.no_run import runs_here
from titan_pt.config.errors import nearest

_MISSING = "the following arguments are required: "
_UNKNOWN = "unrecognized arguments: "


def usage_problems(parser: argparse.ArgumentParser, message: str) -> list[str]:
    """The problems behind a message of argparse."""
    if message.startswith(_MISSING):
        return [*_missing(parser, message.removeprefix(_MISSING).split(", "))]
    if message.startswith(_UNKNOWN):
        word = message.removeprefix(_UNKNOWN).split()[0].partition("=")[0]
        hint = nearest(word, parser._option_string_actions) if word.startswith("-") else ""
        return [f"{message}{hint}; --help lists the flags"]
    message = re.sub(r"^argument ([^:]+): (= )?", lambda m: f"{m[1]} = " if m[2] else f"{m[1]}: ", message)
    return [f"{message}; --help lists the flags"]


def _missing(parser: argparse.ArgumentParser, names: list[str]) -> Iterator[str]:
    """A line for each argument that is needed and not given: its meaning, and what it could be here."""
    for action in parser._actions:
        name = "/".join(action.option_strings) or str(action.metavar or action.dest)
        if name not in names:
            continue
        meaning = parser._get_formatter()._expand_help(action) if action.help else ""
        runs = runs_here() if name in ("--checkpoint", "CHECKPOINT", "RUN_FOLDER") else []
        here = f"; here are {', '.join(runs)}" if runs else ""
        yield f"{name}: missing: {meaning}{here}; --help lists the flags"
