"""Why a TOML file or a tokenizer cannot be read. Imported where one cannot."""

import os
from collections.abc import Iterable
from pathlib import Path

from titan_pt.config.errors import ConfigError, nearest, shown


def unreadable(error: Exception, path: Path, said_by: str) -> ConfigError:
    """Why a TOML file cannot be read."""
    where = f"{path}{said_by}"
    if isinstance(error, FileNotFoundError):
        from titan_pt.config.shipped import known

        return ConfigError(f"{where}: no such file; the working folder is {Path.cwd()}{known(path)}")
    if isinstance(error, IsADirectoryError):
        return ConfigError(f"{where}: a folder; give a TOML file")
    if type(error).__name__ == "TOMLDecodeError":
        return ConfigError(f"{where}: not valid TOML: {error}")
    if isinstance(error, ConfigError):  # not UTF-8, or too large
        return ConfigError(f"{error}{said_by}")
    # ValueError: a name with NUL, too many levels, a number of thousands of digits
    return ConfigError(f"{where}: cannot be read: {error}")


def unknown_tokenizer(name: str, path: str, built_in: Iterable[str]) -> str:
    """What is wrong with a tokenizer.name that is neither built in nor a file of a known kind."""
    folder, exists = os.path.isdir(path), os.path.exists(path)
    reason = "a folder without tokenizer.json" if folder else "an unknown kind of file" if exists else "no such file"
    return (
        f'tokenizer.name = {shown(name)}: {reason}{nearest(name, built_in)}; allowed are "byte", "gpt2", or '
        "the path of a .tiktoken file, a tokenizer.json, or a folder that holds one"
    )
