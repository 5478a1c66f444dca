"""The frame of every tool: its flags, logging, exit codes, and what is printed where it fails or is stopped."""

import argparse
import contextlib
import math
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from titan_pt.config.errors import ConfigError, shown
from titan_pt.run.exit_codes import CannotStart, ExitCode, GaveUp, Stalled
from titan_pt.run.log import init_logging, open_console, quiet_libraries
from titan_pt.run.tool_files import nobody_reads

LARGEST = 2**63 - 1
"""Largest number of a flag that names no other limit."""


class _Paragraphs(argparse.HelpFormatter):
    """Wraps each paragraph of a description by itself."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n\n".join(super(_Paragraphs, self)._fill_text(part, width, indent) for part in text.split("\n\n"))


class ToolParser(argparse.ArgumentParser):
    """The flags of a tool. A mistake in them is a ConfigError like any other: one line, exit code 2.

    Its help calls the tool by the name that it was called by: `titan-pt NAME` or `python -m titan_pt.tools.NAME`.
    """

    def __init__(self, *, prog: str, description: str | None, **options: Any) -> None:
        if sys.argv[0].startswith("titan-pt "):
            prog, description = sys.argv[0], (description or "").replace("python -m titan_pt.tools.", "titan-pt ")
        super().__init__(prog=prog, description=description, formatter_class=_Paragraphs, **options)
        self.given: list[str] = []
        """The arguments that are read."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.given = list(sys.argv[1:] if args is None else args)
        for argument in self.given:
            try:
                argument.encode()
            except UnicodeEncodeError:
                raise ConfigError(f"{argument!a} on the command line: is not UTF-8") from None
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        from titan_pt.tools.usage import usage_problems

        raise ConfigError(*usage_problems(self, message))


def whole(least: int, most: int = LARGEST) -> Callable[[str], int]:
    """The `type` of a flag that takes an integer of this range."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:  # also of thousands of digits
            raise argparse.ArgumentTypeError(f"= {shown(text)}: must be an integer, {_least(least)}") from None
        if not least <= value <= most:
            allowed = _least(least) if value < least else f"at most {most:,}"
            raise argparse.ArgumentTypeError(f"= {shown(value)}: must be {allowed}")
        return value

    return parse


INTEGER = whole(-LARGEST - 1)
"""The `type` of a flag whose range is checked with others."""


def number(least: float, most: float = math.inf) -> Callable[[str], float]:
    """The `type` of a flag that takes a finite number of this range."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (least <= value <= most and math.isfinite(value)):
            allowed = f"at most {most:,}" if value > most else _least(least)
            raise argparse.ArgumentTypeError(f"= {shown(text)}: must be a number, {allowed}")
        return value

    return parse


def _least(least: float) -> str:
    return f"at least {least:,}" if least else "0 or more"


def run_tool(action: Callable[[], None]) -> int:
    """Run the tool's action, which reads its flags too; returns the exit code.

    A user's mistake and an error of the system are one line each, and so is Ctrl-C. A reader of the standard output
    that has enough, such as `head`, ends the tool quietly.
    """
    open_console()
    quiet_libraries()
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        init_logging()
        action()
        sys.stdout.flush()
    except ConfigError as error:
        return _end(ExitCode.USAGE, error.report())
    except KeyboardInterrupt:
        return _end(ExitCode.TERMINATED, "Stopped by Ctrl-C")
    except (GaveUp, CannotStart) as error:
        return _end(ExitCode.FAILED, f"failed: {error}")
    except (OSError, MemoryError, Stalled) as error:
        if isinstance(error, BrokenPipeError) and nobody_reads():
            return ExitCode.DONE
        return _end(ExitCode.FAILED, f"failed: {type(error).__name__}: {' '.join(str(error).split())}")
    except Exception as error:
        from titan_pt.run.failure import tell, users_line

        if not users_line(error):
            raise
        code, said = tell(error)  # of a plugin: by file and line of its own
        return _end(code, said) if said else code
    return ExitCode.DONE


def _end(code: ExitCode, reason: str) -> ExitCode:
    with contextlib.suppress(OSError):  # whoever read it is gone
        print(reason, file=sys.stderr, flush=True)
    return code
