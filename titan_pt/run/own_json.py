"""JSON files that a run wrote for itself, and that a crash or a full disk may have damaged."""

from pathlib import Path
from typing import Any

from titan_pt.run.files import parse_json


def read_own(path: Path) -> dict[str, Any]:
    """The object in a file; empty where there is none or it cannot be read."""
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
