"""Why a TOML file or a tokenizer cannot be read. Imported where one cannot."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from titan_pt.config.errors import ConfigError, nearest, shown

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def explain(error: Exception, path: Path, said_by: str) -> str:
    """What is wrong with a file, in one line.

    Args:
        said_by: what named the file, in parentheses.
    """
    where = f"{path}{said_by}"
    if isinstance(error, ConfigError):  # not UTF-8
        return f"{error}{said_by}"
    if isinstance(error, FileNotFoundError):
        return f"{where}: no such file; the working folder is {Path.cwd()}"
    if isinstance(error, IsADirectoryError):
        return f"{where}: a folder; give a TOML file"
    if isinstance(error, tomllib.TOMLDecodeError):
        return f"{where}: not valid TOML: {error}"
    if isinstance(error, RecursionError):
        return f"{where}: nested too deeply"
    return f"{where}: cannot be read: {error}"  # ValueError: a name with NUL, a number of thousands of digits


def unknown_tokenizer(name: str, built_in: Iterable[str]) -> str:
    """What is wrong with a tokenizer.name that is neither built in nor a file of a known kind."""
    folder, exists = os.path.isdir(name), os.path.exists(name)
    reason = "a folder without tokenizer.json" if folder else "an unknown kind of file" if exists else "no such file"
    return (
        f'tokenizer.name = {shown(name)}: {reason}{nearest(name, built_in)}; allowed are "byte", "gpt2", or '
        "the path of a .tiktoken file, a tokenizer.json, or a folder that holds one"
    )
