"""The console on a terminal: panels, lines that stay, and below them one live line that says what is done now."""

import logging
import os
import re
import sys
import threading
import time
import unicodedata
from typing import Any

from titan_pt.run import heartbeat
from titan_pt.run.log_lines import Plain
from titan_pt.run.outgoing import Outgoing

_COLORS = {logging.WARNING: "33", logging.ERROR: "31", logging.CRITICAL: "31"}
_SECONDS = 1.0
"""Between two looks at what the live line says."""


class TerminalStream(Outgoing):
    """stderr on a terminal, with a live line below what is written.

    The cursor rests at the line's first column, so that what another process prints replaces it.
    """

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._lock = threading.RLock()
        self._live, self._shown, self._panel = "", False, False
        self._at_start = True
        self._ticker: threading.Thread | None = None

    def write(self, text: str) -> int:
        """Write what is printed. It ends the live line, which stays, and a panel."""
        with self._lock:
            self.keep(text)
            self.end_panel()
            self.end_live(stays=True)
            self._put(self.cleaned(text))
        return len(text)

    def keep(self, text: str) -> None:
        """Write this to log.txt alone."""
        if self.log:
            self.log.add(self.cleaned(text))

    def line(self, text: str, *, color: str = "", bar: str = "") -> None:
        """Write a message above the live line; `bar` goes before each of its lines."""
        with self._lock:
            lines = [f"{bar}{_colored(part, color)}" for part in self.cleaned(text).split("\n")]
            self._clear()
            self._put("\n".join(lines) + "\n")
            self._draw()

    def panel(self, text: str, width: int) -> None:
        """Write lines of a panel; the first one of all is its title."""
        with self._lock:
            corner, side, rule = _frame(self._stream)
            title, *rest = self.cleaned(text).split("\n")
            if not self._panel:
                self._panel = True
                self._clear()
                self._put(f"{corner[0]}{rule} {_colored(title, '1')} {rule * max(0, width - 4 - _columns(title))}\n")
            else:
                rest = [title, *rest]
            for line in rest:
                self.line(line, bar=f"{side} ")

    def end_panel(self, width: int = 0) -> None:
        """Close a panel that is open."""
        with self._lock:
            if self._panel:
                self._panel = False
                corner, _, rule = _frame(self._stream)
                self._clear()
                self._put(f"{corner[1]}{rule * max(3, (width or width_of(self._stream)) - 1)}\n")

    def live(self, text: str) -> None:
        """Show this below all lines, until there is something else to show there."""
        with self._lock:
            self._live = self.cleaned(text)
            self._draw()
            if self._ticker is None:
                self._ticker = threading.Thread(target=self._tick, name="live line", daemon=True)
                self._ticker.start()

    def end_live(self, *, stays: bool = False) -> None:
        """Take the live line away, or let it be a line like the others."""
        with self._lock:
            if self._shown and stays:
                self._put("\n")
                self._shown = False
            self._clear()
            self._live = ""

    def _tick(self) -> None:
        while True:
            time.sleep(_SECONDS)
            with self._lock:
                if not self._live:
                    self._ticker = None
                    return
                self._draw()

    def _draw(self) -> None:
        if self._live and self._at_start:
            text = _fitted(_now(self._live), width_of(self._stream) - 1)
            self._stream.write(f"\r\033[K{_colored(text, '36')}\r")
            self._stream.flush()
            self._shown = True

    def _clear(self) -> None:
        if self._shown:
            self._stream.write("\r\033[K")
            self._shown = False

    def _put(self, text: str) -> None:
        if text:
            self._stream.write(f"\033[K{text}" if self._at_start else text)
            self._at_start = text.endswith("\n")
            self._stream.flush()


class TerminalHandler(logging.Handler):
    """Messages with `panel` make a panel, those with `live` the live line, until one ends it; others stay above it.

    A row of a table, whose `panel` is "table", is cut to the cells that fit.
    """

    def __init__(self, rank: str) -> None:
        super().__init__()
        self._prefix = f"[rank{rank}] " if rank != "0" else ""

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stderr
        if not isinstance(stream, TerminalStream):  # put in its place by a test or a notebook
            print(self.format(record), file=stream)
            return
        stream.keep(f"{Plain(self._prefix).format(record)}\n")
        width = width_of(stream)
        panel, live = getattr(record, "panel", False), getattr(record, "live", None)
        whole = live or panel == "table"
        text = Plain(self._prefix, sys.maxsize if whole else width - 6 if panel else width).format(record)
        if panel:
            stream.panel(_fitted(text, width - 6) if whole else text, width)
            return
        stream.end_panel(width)
        if live:
            stream.live(text)
            return
        if live is False:
            stream.end_live()
        stream.line(text, color=_COLORS.get(record.levelno, ""))


def width_of(stream: Any) -> int:
    """Columns to write in: those of the terminal, at most 100."""
    try:
        return max(20, min(100, os.get_terminal_size(stream.fileno()).columns or 80))
    except (OSError, ValueError, AttributeError):
        return 80


def _now(text: str) -> str:
    """The live line with what the process is at: "step 12", "the save of step 12"."""
    phase = current_phase()
    if not phase or not text.startswith("step "):
        return text
    if re.fullmatch(r"step \d+", phase):
        return re.sub(r"^step +\d+", phase, text)
    return f"{phase.removeprefix('the ')}: {text}"


def current_phase() -> str:
    """The phase of this process, such as "step 12"; empty where there is none."""
    return str(heartbeat.PAGE.unpack_from(heartbeat._page)[6].rstrip(b"\0").decode(errors="replace"))


def _frame(stream: Any) -> tuple[str, str, str]:
    """(corners, side, rule) of a panel, by what the terminal can show."""
    return ("╭╰", "│", "─") if "utf" in (stream.encoding or "").lower() else ("++", "|", "-")


def _colored(text: str, code: str) -> str:
    return f"\033[{code}m{text}\033[0m" if code and text and not os.environ.get("NO_COLOR") else text


def _columns(text: str) -> int:
    return sum(_width(character) for character in text)


def _width(character: str) -> int:
    return 0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _fitted(text: str, columns: int) -> str:
    """As many of the text's cells as fit, each whole: two blanks are between them."""
    cut = _cut(text, columns)
    return text if cut == text else text[: len(cut) + 2].rpartition("  ")[0].rstrip() or cut


def _cut(text: str, columns: int) -> str:
    if _columns(text) <= columns:
        return text
    kept = ""
    for character in text:
        columns -= _width(character)
        if columns < 0:
            return kept
        kept += character
    return kept
