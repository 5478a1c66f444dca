"""Folders that a run writes to."""

import tempfile
from pathlib import Path

from titan_pt.config.errors import ConfigError


def make_writable(folder: Path, name: str) -> None:
    """Make the folder, and try that files can be made in it.

    Args:
        name: what gave the folder, for the message.

    Raises:
        ConfigError: it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"{name}: cannot be written to: {error.strerror or error}; name another folder") from None
