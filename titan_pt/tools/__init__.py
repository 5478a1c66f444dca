"""Command-line tools, run with python -m titan_pt.tools.NAME."""

import os
import signal
import sys
from types import FrameType

from titan_pt.run.exit_codes import ExitCode


def _leave(_number: int, _frame: FrameType | None) -> None:
    os._exit(ExitCode.TERMINATED)


if sys.argv[0] == "-m" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # The tool's own imports, torch among them, take seconds: until `command.run_tool` a Ctrl-C would be a traceback.
    signal.signal(signal.SIGINT, _leave)
