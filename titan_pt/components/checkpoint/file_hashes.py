"""What a manifest says of a file: size and sha256."""

import hashlib
from pathlib import Path
from typing import Any

from titan_pt.run.heartbeat import beat

MANIFEST = "manifest.json"
FORMAT = 1
"""Format of the manifest and of the files it names; a reader of another format refuses the folder."""


def file_entry(path: Path) -> dict[str, Any]:
    """{"size": bytes, "sha256": hex} of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            beat()
        return {"size": file.tell(), "sha256": digest.hexdigest()}
