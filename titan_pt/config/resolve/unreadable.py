"""Why a TOML file or a tokenizer cannot be read. Imported where one cannot."""

import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from titan_pt.config.errors import ConfigError, nearest, shown
from titan_pt.config.names import hub_download, meant_path
from titan_pt.run.outgoing import redact

_PLACE = re.compile(r" ?\(at (?:line (?P<line>\d+), column (?P<column>\d+)|end of document)\)")
_QUOTED = re.compile(r"'[^'\n]*'|\"(?:\\.|[^\"\n])*\"|#.*")
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
    number, column = _opening(reason, text) or (int(place["line"] or len(lines)), int(place["column"] or sys.maxsize))
    line = lines[number - 1] if number <= len(lines) else ""
    column = min(column, len(line) + 1)
    advice = f"; it begins in line {number}" if _opening(reason, text) else _advice(reason, line)
    if redact(line) != line:  # it may hold a secret
        return advice
    start = max(0, column - _WIDTH)
    caret = "".join("\t" if c == "\t" else " " for c in line[start : column - 1])
    return f"{advice}\n  {line[start : start + _WIDTH]}\n  {caret}^"


def _opening(reason: str, text: str) -> tuple[int, int] | None:
    """Line and column of the bracket or the three quotes that nothing closes, where that is what is wrong."""
    if "Unclosed array" in reason:
        bare, opened = _QUOTED.sub(lambda quoted: " " * len(quoted[0]), text), list[int]()
        for i, character in enumerate(bare):
            if character == "[":
                opened.append(i)
            elif character == "]" and opened:
                opened.pop()
        found = opened[-1] if opened else -1
    elif "Unterminated string" in reason:
        found = max(text.rfind('"""'), text.rfind("'''"))
    else:
        return None
    return (text.count("\n", 0, found) + 1, found - text.rfind("\n", 0, found)) if found >= 0 else None


def _advice(reason: str, line: str) -> str:
    value = line.partition("#")[0].partition("=")[2].strip()
    if "overwrite" in reason or "twice" in reason or "declare" in reason:
        return "; it stands in the file twice: keep one"
    if value in ("True", "False"):
        return f"; TOML writes {value.lower()}"
    if "\\" in value and ("hex" in reason or "escape" in reason or "Unescaped" in reason):
        return "; a backslash begins an escape: put the text in single quotes"
    if "Illegal character '\\n'" in reason or "Unterminated string" in reason:
        return "; close the quotes"
    if value.lower() in ("yes", "no", "on", "off"):
        return "; TOML writes true or false"
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
