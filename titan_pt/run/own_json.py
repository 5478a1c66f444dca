"""JSON files that a run wrote for itself, and that a crash or a full disk may have damaged."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from titan_pt.run.files import parse_json

_LONGEST_LINE = 1 << 24


def read_own(path: Path) -> dict[str, Any]:
    """The object in a file; empty where there is none or it cannot be read."""
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_lines(path: Path, having: bytes = b"") -> Iterator[tuple[int, bytes, dict[str, Any] | None]]:
    """(number, line, object) of each line that is not empty; the object is None where the line is damaged.

    A last line without an end was cut off, or is being written.

    Args:
        having: other lines are passed over.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE), b""), 1):
            if line.strip() and having in line:
                try:
                    value = parse_json(line)
                except ValueError:
                    value = None
                yield number, line, value if isinstance(value, dict) else None


def read_steps(path: Path, having: bytes = b"") -> Iterator[tuple[int, bytes, dict[str, Any] | None]]:
    """The lines of a file with a row a step, such as metrics.jsonl, as of `read_lines`: a row needs its "step"."""
    for number, line, row in read_lines(path, having):
        step = row.get("step") if row else None
        yield number, line, row if type(step) is int and abs(step) < 1 << 63 else None


def whole_rows(path: Path) -> list[dict[str, Any]]:
    """The whole rows of such a file; none where there is no file. Raises an OSError as `read_lines` does."""
    return [row for _, _, row in read_steps(path) if row is not None] if path.exists() else []
