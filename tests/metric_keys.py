"""The keys that docs/metrics.md lists."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from helpers import ROOT


class DocumentedKey(NamedTuple):
    """A row of the table; a part such as <name> stands for any text."""

    key: str
    trainers: str
    tag: str

    def stands_for(self, key: str) -> bool:
        pattern = "".join(".+" if part.startswith("<") else re.escape(part) for part in re.split(r"(<\w+>)", self.key))
        return re.fullmatch(pattern, key) is not None


def documented_keys() -> list[DocumentedKey]:
    text = (ROOT / "docs" / "metrics.md").read_text().partition("## Sinks")[0]
    rows = re.findall(r"^\| `([^`]+)` \| (all|[a-z, ]+) \|[^|]*\|[^|]*\| (.+) \|$", text, re.MULTILINE)
    return [DocumentedKey(key, trainers, tag.strip("`")) for key, trainers, tag in rows]


def undocumented(rows: Iterable[Mapping[str, Any]], trainer: str) -> set[str]:
    """Keys of the rows that the table does not have for this kind of training."""
    known = [row for row in documented_keys() if row.trainers == "all" or trainer in row.trainers.split(", ")]
    return {key for row in rows for key in row if not any(entry.stands_for(key) for entry in known)}
