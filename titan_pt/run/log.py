"""The console: one logger, silent on ranks that are not asked to speak. Other styles are in `log_styles.py`."""

import contextlib
import io
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from typing import TypeVar

from titan_pt.run.log_lines import Plain
from titan_pt.run.outgoing import guard_console, moves_cursor

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
    """Log one line of a panel."""
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


def quiet_libraries() -> None:
    """Hide notices of other libraries that no user of titan_pt can act on."""
    # torch: FSDP's flat-parameter and inductor's autotune advice, for choices made in this package.
    warnings.filterwarnings("ignore", module=r"torch(\.|$)")
    for name in ("torchao", "torch.utils._pytree"):  # kernels of other machines, and of other versions of torch
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
