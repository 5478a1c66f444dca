"""The manifest of a folder: size and sha256 of every file, so that damage is found before anything is loaded."""

import os
import re
from collections.abc import Collection
from pathlib import Path

from titan_pt.components.checkpoint.file_hashes import FORMAT, MANIFEST, file_entry
from titan_pt.run.files import parse_json

NOT_NOW = "it cannot be read now"
"""Begins the damage of a folder that may be whole when its disk has recovered."""


def find_damage(folder: Path, required: Collection[str] = (), *, hashes: bool = True) -> str | None:
    """Describe the first difference between a folder and its manifest; None if there is none. Sizes are compared first.

    Args:
        required: files without which it is not whole, whatever its manifest says.
        hashes: compare the content of all files too; otherwise only names and sizes.
    """
    try:
        return _find_damage(folder, required, hashes)
    except OSError as error:  # a disk that gives errors, a folder without rights
        from titan_pt.run.unwritable import may_pass

        return f"{NOT_NOW if may_pass(error) else 'it cannot be read'}: {error}"


def _find_damage(folder: Path, required: Collection[str], hashes: bool) -> str | None:
    try:
        manifest = parse_json((folder / MANIFEST).read_text(encoding="utf-8"))
        entries = {str(name): (int(entry["size"]), str(entry["sha256"])) for name, entry in manifest["files"].items()}
        written, step = manifest["format"], manifest.get("step")
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        return f"{MANIFEST} cannot be read: {type(error).__name__}: {error}"
    if written != FORMAT:
        return (
            f"{MANIFEST} has format {written!r}, and this version of titan_pt reads {FORMAT}; take the version that made "
            "it, which the first line of its config.toml names, and export the model with that one"
        )
    if re.fullmatch(r"step-\d+", folder.name) and step is not None and folder.name != f"step-{step}":
        return f"{MANIFEST} is of step-{step}: the folder was renamed"
    unnamed = sorted(set(required) - set(entries))
    if unnamed:
        return f"{MANIFEST} does not name {', '.join(unnamed)}"
    for name, (size, _) in entries.items():
        path = folder / name
        if not stays_inside(folder, name):
            return f"{name} leads out of the folder"
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, not {size}"
    for name, (_, sha256) in entries.items() if hashes else ():
        if file_entry(folder / name)["sha256"] != sha256:
            return f"{name} has changed (sha256)"
    return None


def stays_inside(folder: Path, name: str) -> bool:
    """Whether a name leads to a place in the folder, links followed. The folder itself may be reached by a link."""
    return Path(os.path.realpath(folder / name)).is_relative_to(os.path.realpath(folder))


__all__ = ["FORMAT", "MANIFEST", "file_entry", "find_damage", "stays_inside"]
