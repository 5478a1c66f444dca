"""The console: one logger, silent on ranks that are not asked to speak. Other styles are in `log_styles.py`."""

import contextlib
import io
import logging
import math
import os
import sys
import textwrap
import time
import warnings
from collections.abc import Iterable, Iterator
from typing import TypeVar

from titan_pt.run.outgoing import guard_console, moves_cursor, redact

logger = logging.getLogger("titan_pt")
T = TypeVar("T")


def open_console() -> None:
    """Make arguments and standard streams fit for any text, whatever the locale. A closed stream becomes none."""
    streams = (sys.stdin, sys.stdout, sys.stderr)
    if sys.getfilesystemencoding() != "utf-8" or not all(s and (s.encoding or "").lower() == "utf-8" for s in streams):
        from titan_pt.run.odd_streams import mend

        mend()
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="strict" if stream is sys.stdin else "backslashreplace")
    guard_console()


def init_logging() -> None:
    """Log to stderr. Ranks not named in LOG_RANK (default 0, or a list such as 0,3) only log errors.

    LOG_FORMAT is "plain", "long" (time and rank before each message) or "json" (an object a line); else a ConfigError.
    Without it lines are plain in files and pods; on a terminal there are panels and a live line.
    """
    rank, style = os.environ.get("RANK", "0"), os.environ.get("LOG_FORMAT", "")
    speaking = {part.strip() for part in os.environ.get("LOG_RANK", "0").split(",")}
    guard_console()
    if not style and speaking == {"0"} and moves_cursor(sys.stderr):
        style = "terminal"
    if style in ("", "plain"):
        handler: logging.Handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(Plain("" if speaking == {"0"} and rank == "0" else f"[rank{rank}] "))
    else:
        from titan_pt.run.log_styles import special_handler

        handler = special_handler(style, rank)
    logger.handlers = [handler]
    logger.setLevel(logging.INFO if rank in speaking else logging.ERROR)
    logger.propagate = False


def say(label: str, text: str) -> None:
    """Log one line of the start: on a terminal they are a panel."""
    logger.info(f"{label:<9} {text}", extra={"panel": True})


def tracked(items: Iterable[T], what: str, unit: str, total: int | None = None) -> Iterator[T]:
    """Yield the items; when that has taken 5 seconds the log begins to say how many are done."""
    started = time.monotonic()
    with contextlib.ExitStack() as late:
        for number, item in enumerate(items, 1):
            yield item
            if time.monotonic() - started > 5:
                from titan_pt.run.progress import counted  # most validations are over before

                counted(late, number, what, unit, total, started)


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


def quiet_libraries() -> None:
    """Hide notices of other libraries that no user of titan_pt can act on."""
    # torch: FSDP's flat-parameter and inductor's autotune advice, for choices made in this package.
    warnings.filterwarnings("ignore", module=r"torch(\.|$)")
    for name in ("torchao", "torch.utils._pytree"):  # kernels of other machines, and of other versions of torch
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
