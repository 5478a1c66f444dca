"""The styles of the log that LOG_FORMAT names beside "plain", and the one of terminals."""

import json
import logging
import math
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from titan_pt.config.errors import ConfigError, nearest
from titan_pt.run.log_lines import Plain
from titan_pt.run.outgoing import Outgoing, redact

STYLES = ("plain", "long", "json")


def special_handler(style: str, rank: str) -> logging.Handler:
    """The handler of a style: "long", "json" or "terminal".

    Raises:
        ConfigError: there is no such style.
    """
    if style == "json":
        return JsonHandler()
    if style == "terminal":
        from titan_pt.run.terminal import TerminalHandler

        return TerminalHandler(rank)
    if style != "long":
        raise ConfigError(f"LOG_FORMAT = {style!r}: must be {', '.join(STYLES)}{nearest(style, STYLES)}")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Long(f"[rank{rank}] "))
    return handler


class Long(Plain):
    """Plain lines behind the time, the rank and the level."""

    def format(self, record: logging.LogRecord) -> str:
        return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(record.created))} {super().format(record)}"


class JsonLines(Outgoing):
    """A stream that makes an object of each line that is printed, and one of lines that come at once: a traceback."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._part = ""

    def write(self, text: str) -> int:
        lines, _, self._part = (self._part + text).rpartition("\n")
        if lines.strip():
            self.put(time.time(), "ERROR", lines, {})
        return len(text)

    def put(self, moment: float, level: str, message: str, fields: Mapping[str, Any]) -> None:
        """Write an object, in ASCII; a number that JSON does not have is null."""
        head = {"time": round(moment, 3), "level": level, "rank": int(os.environ.get("RANK", "0"))}
        known = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in fields.items()}
        super().write(json.dumps({**known, **head, "message": redact(message)}) + "\n")

    def cleaned(self, text: str) -> str:
        return text


class JsonHandler(logging.Handler):
    """Messages as objects; that of a step has its numbers beside it."""

    def emit(self, record: logging.LogRecord) -> None:
        message = self.format(record)
        stream = sys.stderr
        if isinstance(stream, JsonLines):
            stream.put(record.created, record.levelname, message, getattr(record, "row", {}))
        else:  # put in its place by a test or a notebook
            print(message, file=stream)
        stream.flush()
