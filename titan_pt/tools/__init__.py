"""Command-line tools, run by `titan-pt NAME` (`titan_pt.cli`) or python -m titan_pt.tools.NAME."""

import os
import signal
import sys
from types import FrameType

from titan_pt.run.exit_codes import ExitCode


def _leave(_number: int, _frame: FrameType | None) -> None:
    os._exit(ExitCode.TERMINATED)


def _asked_for() -> str | None:
    """The NAME of `python -m titan_pt.tools.NAME` where there is no such module."""
    given = sys.orig_argv if sys.argv[0] == "-m" else []
    module = next((given[i + 1] for i, word in enumerate(given[:-1]) if word == "-m"), "")
    name = module.removeprefix(f"{__name__}.")
    there = name == module or any(os.path.exists(os.path.join(__path__[0], f"{name}{end}")) for end in (".py", ""))
    return None if there else name


if (_missing := _asked_for()) is not None:
    from titan_pt.cli import unknown

    sys.exit(sys.stderr.write(f"{unknown(_missing)}\n") and ExitCode.USAGE)

_IS_COMMAND = sys.argv[0] == "-m" or sys.argv[0].startswith("titan-pt ")
if _IS_COMMAND and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # The tool's own imports, torch among them, take seconds: until `command.run_tool` a Ctrl-C would be a traceback.
    signal.signal(signal.SIGINT, _leave)
