"""Rows of metrics.jsonl that were there before. Imported where a run goes on."""

import logging
import math
from pathlib import Path

from titan_pt.run.files import parse_json, write_atomic

logger = logging.getLogger("titan_pt")


def keep_rows(path: Path, step: int, line: str = "") -> None:
    """Drop the rows of later steps, and put a line in their place."""
    kept = f"{rows_up_to(path, step)}{line}"
    if kept.encode() != (path.read_bytes() if path.exists() else b""):
        write_atomic(path, kept)


def rows_up_to(path: Path, step: int) -> str:
    """The whole rows up to a step of a metrics file; none where there is no file."""
    lines = path.read_text("utf-8", "replace").splitlines() if path.exists() else []
    steps = [step_of(line) for line in lines]
    if math.inf in steps[:-1]:  # the last one may have been cut off by a crash
        logger.warning(f"{path}, line {steps.index(math.inf) + 1}: damaged; such lines are dropped")
    return "".join(f"{line}\n" for line, its_step in zip(lines, steps, strict=True) if its_step <= step)


def step_of(line: str) -> float:
    """The step of a row; infinity where the line is not a whole row."""
    try:
        return int(parse_json(line)["step"])
    except (ValueError, KeyError, TypeError, OverflowError):
        return math.inf
