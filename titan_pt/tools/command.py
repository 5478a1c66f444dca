"""The frame of every tool's `main`: logging, exit codes, and what is printed on a failure."""

import sys
from collections.abc import Callable

from titan_pt.config.errors import ConfigError
from titan_pt.run.exit_codes import ExitCode, GaveUp
from titan_pt.run.log import init_logging, quiet_libraries


def run_tool(action: Callable[[], None]) -> int:
    """Run the tool's action; returns the exit code. A user's mistake and an error of the system are one line each."""
    init_logging()
    quiet_libraries()
    try:
        action()
    except ConfigError as error:
        print(error.report(), file=sys.stderr)
        return ExitCode.USAGE
    except GaveUp as error:
        print(f"failed: {error}", file=sys.stderr)
        return ExitCode.FAILED
    except (OSError, MemoryError) as error:
        print(f"failed: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        return ExitCode.FAILED
    return ExitCode.DONE
