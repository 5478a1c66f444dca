"""The console: one logger, coloured on a terminal, silent on ranks that are not asked to speak."""

import io
import logging
import os
import sys
import warnings

from titan_pt.run.outgoing import guard_console

logger = logging.getLogger("titan_pt")


def open_console() -> None:
    """Make arguments and standard streams fit for any text, whatever the locale. A closed stream becomes none.

    Text goes to files and pipes as UTF-8; of what a terminal cannot show there are escapes.
    """
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
        elif isinstance(stream, io.TextIOWrapper):
            if not stream.isatty() and stream.encoding.lower() != "utf-8":
                stream.reconfigure(encoding="utf-8")
            stream.reconfigure(errors="strict" if name == "stdin" else "backslashreplace")
    guard_console()


def init_logging() -> None:
    """Log to stderr. Ranks not named in LOG_RANK (default 0, or a list such as 0,3) only log errors."""
    rank = os.environ.get("RANK", "0")
    speaking = {part.strip() for part in os.environ.get("LOG_RANK", "0").split(",")}
    guard_console()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"[rank{rank}]:[titan] %(asctime)s - %(levelname)s - %(message)s"))
    logger.handlers = [handler]
    logger.setLevel(logging.INFO if rank in speaking else logging.ERROR)
    logger.propagate = False


def quiet_libraries() -> None:
    """Hide notices of other libraries that no user of titan_pt can act on."""
    # torch: FSDP's flat-parameter and inductor's autotune advice, for choices made in this package.
    warnings.filterwarnings("ignore", module=r"torch(\.|$)")
    for name in ("torchao", "torch.utils._pytree"):  # kernels of other machines, and of other versions of torch
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


class Color:
    """ANSI colours, or empty strings."""

    def __init__(self, enabled: bool) -> None:
        self.red, self.green, self.yellow, self.blue, self.cyan, self.magenta, self.reset = (
            (f"\033[{code}m" if enabled else "") for code in (31, 32, 33, 34, 36, 35, 0)
        )


def terminal_colors(disabled: bool) -> Color:
    """Colours where stderr is a terminal that wants them."""
    return Color(not disabled and sys.stderr.isatty() and not os.environ.get("NO_COLOR"))
