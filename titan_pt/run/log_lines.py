"""Messages as lines of the log, and durations in them."""

import logging
import math
import os
import sys
import textwrap

from titan_pt.run.outgoing import redact


def format_seconds(seconds: float) -> str:
    """Format a duration, such as "1d 02:03:04", "02:03:04" or "03:04"."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    clock = f"{hours:02}:{minutes:02}:{rest:02}" if hours or days else f"{minutes:02}:{rest:02}"
    return f"{days}d {clock}" if days else clock


class Plain(logging.Formatter):
    """Messages of at most LOG_WIDTH columns (default 100; 0: any number): a longer line goes on in the next one.

    What follows the first line is indented: no text of a model or of a file can pass for a line of the log.
    """

    def __init__(self, prefix: str = "", width: int | None = None) -> None:
        super().__init__()
        wished = os.environ.get("LOG_WIDTH", "")
        self._prefix, self._width = prefix, width or (int(wished) if wished.isdecimal() else 100) or sys.maxsize

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno < logging.WARNING else f"{record.levelname}: "
        first, *others = redact(super().format(record)).split("\n")
        hang = 10 if hasattr(record, "panel") else 4
        lines = self._wrapped(f"{self._prefix}{level}{first}", "", hang, long_words=True)
        return "\n".join([*lines, *(part for line in others for part in self._wrapped(line, "  ", 2))])

    def _wrapped(self, line: str, indent: str, hang: int, *, long_words: bool = False) -> list[str]:
        """The line in parts; with `long_words` one such as a path stays whole, which can be copied."""
        if len(line) + len(indent) <= self._width:
            return [indent + line]
        return textwrap.wrap(
            line,
            self._width,
            initial_indent=indent,
            subsequent_indent=indent + " " * hang,
            break_long_words=not long_words,
            break_on_hyphens=False,
        )
