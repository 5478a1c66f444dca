"""Arguments and standard streams of a locale that is not UTF-8, and streams that are closed."""

import io
import os
import sys


def mend() -> None:
    """Make them UTF-8, but for a terminal's own encoding; a closed stream becomes none."""
    if sys.getfilesystemencoding() != "utf-8":
        sys.argv[:] = [os.fsencode(argument).decode("utf-8", "surrogateescape") for argument in sys.argv]
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            # The lowest free number, which is the closed stream's: else a file of the run would get it, and with it
            # what libraries write to that stream.
            null = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(null, True)
            setattr(sys, name, open(null, "r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper) and not stream.isatty() and stream.encoding.lower() != "utf-8":
            stream.reconfigure(encoding="utf-8")
