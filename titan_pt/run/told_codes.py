"""The exit codes and reasons that workers told their launcher (`exit_codes.record_exit_code`)."""

from collections.abc import Iterator
from pathlib import Path


def read_exit_codes(folder: Path) -> list[int]:
    """The codes that workers recorded."""
    return [code for code, _ in _records(folder)]


def read_reasons(folder: Path, code: int) -> list[str]:
    """The reasons of the workers that left with this code, each once."""
    return list(dict.fromkeys(reason for recorded, reason in _records(folder) if recorded == code and reason))


def _records(folder: Path) -> Iterator[tuple[int, str]]:
    for path in sorted(folder.glob("rank-*")):
        code, _, reason = path.read_text("utf-8").partition("\n")
        if code:  # empty: killed while it wrote
            yield int(code), reason
