"""What the tools read and write beside a run: paths of flags, lines of files, a standard output that others cut off."""

import os
import select
import sys
from pathlib import Path

from titan_pt.config.errors import ConfigError, shown
from titan_pt.run.files import MOST_BYTES, read_text
from titan_pt.run.paths import expand_path


def flag_path(flag: str, text: str) -> Path:
    """The path that a flag of a tool names.

    Raises:
        ConfigError: it is empty, or not one (`expand_path`).
    """
    try:
        if not text.strip() or "\0" in text:
            raise ValueError("must name a file or folder")
        return Path(expand_path(text))
    except ValueError as error:
        raise ConfigError(f"{flag} = {shown(text)}: {error}") from None


def read_lines(path: Path) -> list[str]:
    """The lines of a file without their ends. Raises as `read_text` does."""
    lines = read_text(path, 8 * MOST_BYTES).split("\n")
    return lines if lines[-1] else lines[:-1]


def nobody_reads() -> bool:
    """Whether the reader of the standard output is gone; what is still to be flushed at the exit then goes nowhere."""
    try:
        output = sys.stdout.fileno()
    except (OSError, ValueError):
        return False
    poll = select.poll()
    poll.register(output, 0)
    if not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return True
