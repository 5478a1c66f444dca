"""What is wrong with the arguments of a tool, and what to type instead. Imported where something is."""

import argparse
import re
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING

from titan_pt.components.checkpoint.no_run import runs_here
from titan_pt.config.errors import nearest
from titan_pt.config.names import closest
from titan_pt.config.resolve.report import SYNONYMS

if TYPE_CHECKING:
    from titan_pt.tools.command import ToolParser

_MISSING = "the following arguments are required: "
_UNKNOWN = "unrecognized arguments: "
_LISTED = "; --help lists the flags"
_FOLDERS = ("RUN", "RUN_FOLDER", "MODEL")
"""Arguments that name a run, and have no flag."""
_FOLDER_FLAGS = ("--checkpoint", "--run", "--runs", "--run_folder", "--folder", "--model", "--path")


def usage_problems(parser: "ToolParser", message: str) -> list[str]:
    """The problems behind a message of argparse, and flags that are unknown beside it."""
    unknown = dict(_unknown(parser))
    if "--help" in unknown:  # and nothing else is wrong
        return [unknown["--help"]]
    if message.startswith(_MISSING):
        left = _missing(parser, message.removeprefix(_MISSING).split(", "), [*unknown])
        return [*unknown.values(), *left]
    if unknown:  # the value of one may be taken for another argument
        return [*unknown.values()]
    if message.startswith(_UNKNOWN):
        return [f"{message}; a text of several words needs quotes{_LISTED}"]
    if "ignored explicit argument" in message and message.startswith("argument -h/"):
        return [f"{_UNKNOWN}{next(word for word in parser.given if word.startswith('-h'))}; did you mean --help?"]
    message = re.sub(r"^argument ([^:]+): (= )?", lambda m: f"{m[1]} = " if m[2] else f"{m[1]}: ", message)
    return [f"{message}{_LISTED}"]


def check_own_flags(parser: "ToolParser", left: list[str]) -> None:
    """Raise a ConfigError where one of these arguments, which are to be keys, is a flag of the tool mistyped."""
    known = [option.removeprefix("--") for option in parser._option_string_actions]
    for name in [word[2:].partition("=")[0] for word in left if word.startswith("--")]:
        if "." not in name and name not in SYNONYMS and closest(name, known, cutoff=0.75):
            parser.error(_UNKNOWN)


def _unknown(parser: "ToolParser") -> Iterator[tuple[str, str]]:
    """(what was meant, problem) of each flag that the tool does not have; those with a dot may be keys of a config."""
    options, words = parser._option_string_actions, parser.given
    for number, argument in enumerate(words[: words.index("--") if "--" in words else None]):
        word, _, value = argument.partition("=")
        if not word.startswith("--") or "." in word or any(o.startswith(word) for o in options):
            continue
        folder = next((a for a in parser._actions if not a.option_strings and a.metavar in _FOLDERS), None)
        if folder and word in _FOLDER_FLAGS:
            command = [*words[:number], *([value] if value else []), *words[number + 1 :]]
            yield (
                str(folder.metavar),
                f"{_UNKNOWN}{word}; {folder.metavar} has no flag: {parser.prog} {shlex.join(command)}",
            )
        else:
            meant = closest(word, options)
            end = nearest(word, options) if meant == "--help" else f"{nearest(word, options)}{_LISTED}"
            yield meant or word, f"{_UNKNOWN}{word}{end}"


def _missing(parser: "ToolParser", names: list[str], meant: list[str]) -> Iterator[str]:
    """A line for each argument that is needed and neither given nor meant: what it is, and what it could be here."""
    for action in parser._actions:
        name = "/".join(action.option_strings) or str(action.metavar or action.dest)
        shown = str(action.metavar) if action.metavar in _FOLDERS else name
        if name not in names or {name, shown} & set(meant):
            continue
        told = next((a for a in parser._actions if shown == a.metavar and not a.option_strings), action)
        meaning = parser._get_formatter()._expand_help(told) if told.help else ""
        yield f"{shown}: missing: {meaning}{_here(parser) if shown in _FOLDERS else ''}{_LISTED}"


def _here(parser: argparse.ArgumentParser) -> str:
    """What a run could be here, or how to make one."""
    if runs := runs_here():
        return f"; here are {', '.join(runs)}"
    experiment = "quickstart_chat" if "chat" in parser.prog else "quickstart"
    return f"; titan-pt train {experiment} makes outputs/{experiment}"
