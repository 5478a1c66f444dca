"""Why a TOML file or a tokenizer cannot be read. Imported where one cannot."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from titan_pt.config.errors import ConfigError, nearest, shown
from titan_pt.config.names import hub_download, meant_path
from titan_pt.run.outgoing import redact

_PLACE = re.compile(r" ?\(at (?:line (?P<line>\d+), column (?P<column>\d+)|end of document)\)")
_WIDTH = 96


def unreadable(error: Exception, path: Path, said_by: str, text: str = "") -> ConfigError:
    """Why a TOML file cannot be read.

    Args:
        text: its content, where it could be read as text.
    """
    where = f"{path}{said_by}"
    if isinstance(error, FileNotFoundError):
        from titan_pt.config.shipped import known

        base = "" if path.is_absolute() else f"; the working folder is {Path.cwd()}"
        if said_by.startswith(" (extends"):  # what it extends was named from the folder of the file that says so
            base = f"; it is looked for in {path.parent.resolve()}, the folder of the file that extends it"
        return ConfigError(f"{where}: no such file{base}{known(path)}")
    if isinstance(error, IsADirectoryError):
        found = sorted(file.name for file in path.glob("*.toml"))[:8]
        return ConfigError(f"{where}: a folder; give a TOML file{f', such as {path / found[0]}' if found else ''}")
    if type(error).__name__ == "TOMLDecodeError":
        return ConfigError(f"{where}: not valid TOML: {error}{_excerpt(str(error), text)}")
    if isinstance(error, ConfigError):  # not UTF-8, or too large
        return ConfigError(f"{error}{said_by}")
    # ValueError: a name with NUL, too many levels, a number of thousands of digits
    return ConfigError(f"{where}: cannot be read: {error}")


def _excerpt(reason: str, text: str) -> str:
    """What to do, the line of a mistake in TOML, and a caret under it."""
    place, lines = _PLACE.search(reason), text.splitlines()
    if not place or not lines:
        return ""
    number = int(place["line"] or len(lines))
    line = lines[number - 1] if number <= len(lines) else ""
    column = min(int(place["column"] or len(line) + 1), len(line) + 1)
    advice = _advice(reason, line)
    if redact(line) != line:  # it may hold a secret
        return advice
    start = max(0, column - _WIDTH)
    caret = "".join("\t" if c == "\t" else " " for c in line[start : column - 1])
    return f"{advice}\n  {line[start : start + _WIDTH]}\n  {caret}^"


def _advice(reason: str, line: str) -> str:
    value = line.partition("#")[0].partition("=")[2].strip()
    if "overwrite" in reason or "twice" in reason or "declare" in reason:
        return "; it stands in the file twice: keep one"
    if value in ("True", "False"):
        return f"; TOML writes {value.lower()}"
    if value in ("None", "null", "nil"):
        return "; TOML has no empty value: leave the key out"
    if re.fullmatch(r"[A-Za-z_./~$][^\"'\[\]{},=]*", value) and value not in ("true", "false"):
        return f'; text stands in quotes: "{redact(value)}"'
    return ""


def unknown_tokenizer(name: str, path: str, built_in: Iterable[str]) -> str:
    """What is wrong with a tokenizer.name that is neither built in nor a file of a known kind."""
    folder, exists = os.path.isdir(path), os.path.exists(path)
    reason = "a folder without tokenizer.json" if folder else "an unknown kind of file" if exists else "no such file"
    meant = "" if exists else nearest(name, built_in) or hub_download(path) or meant_path(path)
    return (
        f'tokenizer.name = {shown(name)}: {reason}{meant}; allowed are "byte", "gpt2", or '
        "the path of a .tiktoken file, a tokenizer.json, or a folder that holds one"
    )
