"""Files and folders that a run writes: flushed to the disk, never half there."""

import json
import os
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import Any

from titan_pt.config.errors import ConfigError


def make_writable(folder: Path, name: str) -> None:
    """Make the folder and check that files can be made in it.

    Args:
        name: the setting that names the folder, for the message.

    Raises:
        ConfigError: it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"{name}: cannot be written to: {error.strerror or error}; name another folder") from None


def write_atomic(path: Path, text: str) -> None:
    """Replace a text file; whoever reads it meanwhile, or after a crash, finds the old text or the new one.

    The text is written to `NAME.tmp` beside the file, flushed to the disk, and renamed.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    write_text(temporary, text)
    os.replace(temporary, path)


def write_json(path: Path, content: Any, indent: int | None = None) -> None:
    """Write a value as JSON and flush the file to the disk."""
    write_text(path, json.dumps(content, indent=indent))


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8 and flush the file to the disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flush the names of a folder's files to the disk: without that, a crash can lose a new or renamed file."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_folder(folder: Path) -> None:
    """Remove a folder that others look for by its name: it is renamed first, so that none finds it half deleted.

    Raises:
        OSError: it cannot be renamed; what cannot be deleted afterwards is left in `NAME.tmp-*`.
    """
    doomed = folder.with_name(f"{folder.name}.tmp-{uuid.uuid4().hex[:8]}")
    os.rename(folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)
