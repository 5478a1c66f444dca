"""The manifest of a folder: size and sha256 of every file, so that damage is found before anything is loaded."""

import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from titan_pt.run.heartbeat import beat

MANIFEST = "manifest.json"
FORMAT = 1
"""Format of the manifest and of the files it names; a reader of another format refuses the folder."""


def file_entry(path: Path) -> dict[str, Any]:
    """{"size": bytes, "sha256": hex} of a file."""
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": _sha256(file)}


def find_damage(folder: Path, required: Collection[str] = (), *, hashes: bool = True) -> str | None:
    """Describe the first difference between a folder and its manifest; None if there is none. Sizes are compared first.

    Args:
        required: files without which it is not whole, whatever its manifest says.
        hashes: compare the content of all files too; otherwise only names and sizes.
    """
    try:
        return _find_damage(folder, required, hashes)
    except OSError as error:  # a disk that gives errors, a folder without rights
        return f"it cannot be read: {error}"


def _find_damage(folder: Path, required: Collection[str], hashes: bool) -> str | None:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        entries = {str(name): (int(entry["size"]), str(entry["sha256"])) for name, entry in manifest["files"].items()}
        written = manifest["format"]
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read: {type(error).__name__}: {error}"
    if written != FORMAT:
        return f"{MANIFEST} has format {written!r}, and this version of titan_pt reads {FORMAT}"
    unnamed = sorted(set(required) - set(entries))
    if unnamed:
        return f"{MANIFEST} does not name {', '.join(unnamed)}"
    for name, (size, _) in entries.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, not {size}"
    for name, (_, sha256) in entries.items() if hashes else ():
        if file_entry(folder / name)["sha256"] != sha256:
            return f"{name} has changed (sha256)"
    return None


def _sha256(file: Any) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
        beat()
    return digest.hexdigest()
