"""Rows of metrics.jsonl that were there before. Imported where a run goes on."""

import logging
from pathlib import Path

from titan_pt.run.files import write_atomic
from titan_pt.run.own_json import read_steps

logger = logging.getLogger("titan_pt")


def keep_rows(path: Path, step: int, line: str = "") -> None:
    """Drop the rows of later steps, and put a line in their place."""
    kept = rows_up_to(path, step) + line.encode()
    if kept != (path.read_bytes() if path.exists() else b""):
        write_atomic(path, kept.decode(errors="replace"))


def rows_up_to(path: Path, step: int) -> bytes:
    """The whole rows up to a step of a metrics file; none where there is no file."""
    kept, told = [], False
    for number, line, row in read_steps(path) if path.exists() else ():
        if row is None and line.endswith(b"\n") and not told:  # otherwise cut off by a crash
            told = True
            logger.warning(f"{path}, line {number}: damaged; such lines are dropped")
        elif row is not None and row["step"] <= step:
            kept.append(line.rstrip() + b"\n")
    return b"".join(kept)
