"""Decisions that depended on the moment, kept for every resume: substituted blocks and row groups given up."""

import json
import logging
import os
from pathlib import Path
from typing import Any

from titan_pt.run.outgoing import redact
from titan_pt.run.own_json import read_lines

logger = logging.getLogger("titan_pt")


class SkipLog:
    """A record on disk of row groups that were given up or read out of turn, so that a resume decides the same.

    Each process appends to a JSON-lines file of its own; a start reads the files of all. The names in them, such as
    "unit" for a row group, are those of the first release.

    Args:
        folder: of the files; None keeps the decisions in memory alone.
        writer: name of this process's file.
    """

    def __init__(self, folder: Path | None = None, writer: str = "0") -> None:
        self._path = folder / f"ledger-{writer}.jsonl" if folder else None
        self._taken: dict[tuple[str, int, int, int], int] = {}
        self._lost: dict[tuple[str, int, int], str] = {}
        for path in sorted(folder.glob("ledger-*.jsonl")) if folder else []:
            for number, _, entry in read_lines(path):
                if not self._remember(entry):
                    logger.warning(f"{path}, line {number}: damaged; passed over")

    def taken(self, source: str, num_streams: int, stream: int, count: int) -> int | None:
        """Number of the block that a stream took out of turn after `count` others, or None."""
        return self._taken.get((source, num_streams, stream, count))

    def take(self, source: str, num_streams: int, stream: int, count: int, block: int) -> None:
        """Record a block that was taken out of turn."""
        self._taken[source, num_streams, stream, count] = block
        self._append(
            kind="substituted", source=source, num_streams=num_streams, stream=stream, count=count, block=block
        )

    def lost(self, source: str, epoch: int, row_group: int) -> str | None:
        """Why a row group was given up in an epoch, or None."""
        return self._lost.get((source, epoch, row_group))

    def lose(self, source: str, epoch: int, row_group: int, name: str, documents: int, reason: str) -> None:
        """Record a row group that was given up."""
        self._lost[source, epoch, row_group] = reason
        self._append(
            kind="quarantined",
            source=source,
            epoch=epoch,
            unit=row_group,
            name=name,
            documents=documents,
            reason=redact(reason),
        )

    def _append(self, **entry: Any) -> None:
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())  # before a document that follows from it is trained on

    def _remember(self, entry: Any) -> bool:
        """Take over a line; False where it is damaged, such as one cut off when the machine went down."""
        try:
            if entry["kind"] == "substituted":
                key = entry["source"], entry["num_streams"], entry["stream"], entry["count"]
                self._taken[key] = entry["block"]
            else:
                self._lost[entry["source"], entry["epoch"], entry["unit"]] = entry["reason"]
        except (KeyError, TypeError):
            return False
        return True
