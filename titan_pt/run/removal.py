"""Folders that go. Imported where one does."""

import os
import shutil
import uuid
from pathlib import Path


def remove_folder(folder: Path) -> None:
    """Remove a folder that others look for by its name: it is renamed first, so that none finds it half deleted.

    Raises:
        OSError: it cannot be renamed; what cannot be deleted afterwards is left in `NAME.tmp-*`.
    """
    doomed = folder.with_name(f"{folder.name}.tmp-{uuid.uuid4().hex[:8]}")
    os.rename(folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)
