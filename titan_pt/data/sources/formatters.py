"""How a row of a dataset becomes one text. A user's own formatter comes through `experimental.custom_import`."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from titan_pt.config.errors import ConfigError, one_of
from titan_pt.config.schema.job_config import Source
from titan_pt.protocols.registry import Registry

Record = Mapping[str, Any]
"""A row of a dataset: its values by column."""


@dataclass(frozen=True)
class Formatter:
    """Function that makes the text of a row from some of its columns."""

    name: str
    columns: tuple[str, ...]
    """Columns that are read; all others are not even fetched. None named: all are."""
    format: Callable[[Record], Any]
    """Function from a record of those columns to its text; any other value is reported with its place."""
    source: Callable[..., Any] | None = None
    """The function whose code decides about the text, where it is not `format` itself."""

    @property
    def fingerprint(self) -> str:
        """Hash of the function's source, or of its byte code where there is none, as checkpoints hold it."""
        if self.name == "text":
            return f"text:{self.columns[0]}"
        from titan_pt.data.sources.formatter_sources import body_hash

        return f"{self.name}:{','.join(self.columns)}:{body_hash(self.source or self.format)}"

    @functools.cached_property
    def key(self) -> str:
        """Hash of all code that the texts depend on, as far as it can be known: part of the key of kept texts."""
        if self.name == "text":
            return self.fingerprint
        from titan_pt.data.sources.formatter_sources import sources_hash

        return f"{self.fingerprint}:{sources_hash(self.source or self.format)}"


RECORDS = "sft:"
"""Prefix of the names of formatters that make records."""

FORMATTERS: Registry[Formatter] = Registry(
    "formatter {}",
    {"medqa": "titan_pt.data.builtin.formatters:MEDQA", "gsm8k": "titan_pt.data.builtin.formatters:GSM8K"},
    reserved=("text",),
)


def register_formatter(name: str, columns: tuple[str, ...], function: Callable[[Record], Any]) -> None:
    """Make `formatter = name` known: `function(row)` is the text of a row, a mapping of these columns to values."""
    FORMATTERS.register(name, Formatter(name, columns, function))


def find_formatter(source: Source) -> Formatter:
    """The formatter of a `[[data.sources]]` table: by name, else the one column `text_field` as it is.

    Raises:
        ConfigError: the name is unknown, or a text_field is given to a formatter that has columns of its own.
    """
    name = source.formatter or "text"
    if source.text_field is not None and name in FORMATTERS:
        raise ConfigError(
            f"formatter = {name!r}: reads {one_of(get_formatter(name, '').columns)}; leave text_field out"
        )
    return get_formatter(name, source.text_field or "text")


def get_formatter(name: str, column: str) -> Formatter:
    """The formatter of that name; "text" takes one column as it is."""
    if name == "text":
        return Formatter("text", (column,), lambda row: row[column])
    if name not in FORMATTERS:
        from titan_pt.data.sources.unreadable import unknown_formatter

        raise unknown_formatter(name, list(FORMATTERS), RECORDS)
    return FORMATTERS[name]
