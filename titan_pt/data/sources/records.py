"""Formatters that make records for fine-tuning, by name."""

import json
from collections.abc import Callable, Mapping

from titan_pt.data.sources.formatters import FORMATTERS, RECORDS, Formatter, Record


def register_records(name: str, function: Callable[[Record], Record]) -> None:
    """Make `formatter = name` known to the sft trainer: `function(row)` is the record of a row, with all its columns.

    A record holds either `prompt` and `completion` or `messages`. Where the function raises, the row is a bad record,
    which `sft.on_bad_record` is for. The text of such a formatter is the record as JSON.

    Raises:
        ValueError: the name is taken.
    """

    def write(row: Record) -> str:
        try:
            if not isinstance(row, Mapping):
                raise ValueError(f"it is {'text' if isinstance(row, str) else type(row).__name__}, without fields")
            record = dict(function(row))
        except Exception as error:  # rows of any shape
            reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            record = {"bad": reason}
        return json.dumps(record, default=str)

    if RECORDS + name in FORMATTERS:
        raise ValueError(f"formatter {name!r} of records is registered already")
    FORMATTERS.register(RECORDS + name, Formatter(RECORDS + name, (), write, function))
