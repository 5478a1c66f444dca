"""A row {"to": ..., "body": ...} as a letter. `register_formatter` takes the columns that the function reads."""

from collections.abc import Mapping
from typing import Any

from titan_pt.data.sources.formatters import register_formatter


def letter(row: Mapping[str, Any]) -> str:
    """The text of one row; "" leaves a row out."""
    return f"Dear {row['to']},\n{row['body'].strip()}\n" if row["body"] else ""


register_formatter("letter", ("to", "body"), letter)
