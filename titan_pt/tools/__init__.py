"""Command-line tools, run by `titan-pt NAME` (`titan_pt.cli`) or python -m titan_pt.tools.NAME."""

import os
import signal
import sys
from types import FrameType

from titan_pt.run.exit_codes import ExitCode


def _leave(_number: int, _frame: FrameType | None) -> None:
    os._exit(ExitCode.TERMINATED)


_IS_COMMAND = sys.argv[0] == "-m" or sys.argv[0].startswith("titan-pt ")
if _IS_COMMAND and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # The tool's own imports, torch among them, take seconds: until `command.run_tool` a Ctrl-C would be a traceback.
    signal.signal(signal.SIGINT, _leave)
