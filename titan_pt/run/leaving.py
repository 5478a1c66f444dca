"""How the process of a run ends, when its exit code is known."""

import atexit
import contextlib
import os
import sys
import threading
from typing import NoReturn

from titan_pt.run.exit_codes import ExitCode

EXIT_SECONDS = 60.0
"""How long threads and exit handlers of libraries may take: one that hangs must not keep the exit code."""


def leave(code: int) -> NoReturn:
    """End the process, without the interpreter's own finalization.

    A thread of a process group may still hold the tensors of its last collective. It asks for the interpreter's lock to
    free them, and torch aborts the process where the interpreter is ending (pytorch/pytorch#190489). A rank that failed
    does not even join threads and call exit handlers: they would wait for ranks that are gone.
    """
    if code not in (ExitCode.FAILED, ExitCode.USAGE, ExitCode.GAVE_UP) or os.environ.get("WORLD_SIZE", "1") == "1":
        limit = threading.Timer(EXIT_SECONDS, os._exit, (code,))
        limit.daemon = True
        limit.start()
        threading._shutdown()  # type: ignore[attr-defined]  # as multiprocessing ends its processes
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # whoever read it is gone
            stream.flush()
    os._exit(code)
