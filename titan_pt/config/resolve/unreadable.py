"""Why a TOML file cannot be read. Imported where one cannot."""

from pathlib import Path

from titan_pt.config.errors import ConfigError


def unreadable(error: Exception, path: Path, said_by: str) -> ConfigError:
    """Why a TOML file cannot be read."""
    where = f"{path}{said_by}"
    if isinstance(error, FileNotFoundError):
        return ConfigError(f"{where}: no such file; the working folder is {Path.cwd()}")
    if isinstance(error, IsADirectoryError):
        return ConfigError(f"{where}: a folder; give a TOML file")
    if type(error).__name__ == "TOMLDecodeError":
        return ConfigError(f"{where}: not valid TOML: {error}")
    if isinstance(error, ConfigError):  # not UTF-8, or too large
        return ConfigError(f"{error}{said_by}")
    # ValueError: a name with NUL, too many levels, a number of thousands of digits
    return ConfigError(f"{where}: cannot be read: {error}")
