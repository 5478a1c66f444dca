"""`job.notify`: a command that runs when a run has ended, however it did. What it does costs the run nothing."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from titan_pt.config.schema.job_config import JobConfig
from titan_pt.run.exit_codes import ExitCode
from titan_pt.run.outgoing import redact

MOST_SECONDS = 30.0
"""Time that the command has."""
CODE, REASON, FOLDER = "TITAN_PT_CODE", "TITAN_PT_REASON", "TITAN_PT_FOLDER"

_REASONS: dict[int, str] = {
    ExitCode.DONE: "finished",
    ExitCode.PREEMPTED: "stopped by a signal, or no data came; the same command goes on from the checkpoint",
    ExitCode.TERMINATED: "stopped by a signal before there was a checkpoint",
}


def notify(config: JobConfig, code: int, reasons: Sequence[str]) -> None:
    """Run the command of `job.notify`, without a shell, and wait for it at most MOST_SECONDS.

    It gets the exit code, the reason in words and the run folder in its environment.
    """
    reason = "\n".join(reasons) or _REASONS.get(code, "")
    told = {CODE: str(int(code)), REASON: redact(reason), FOLDER: os.path.abspath(config.job.dump_folder)}
    if problem := _run(shlex.split(config.job.notify), {**os.environ, **told}):
        with contextlib.suppress(OSError):
            print(f"job.notify: {problem}", file=sys.stderr)


def _run(arguments: Sequence[str], environment: dict[str, str]) -> str:
    """Run a command; returns what is wrong, or an empty text."""
    try:
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(
                arguments,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            try:
                code = process.wait(MOST_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return f"{arguments[0]} took more than {MOST_SECONDS:g} s and was ended"
            if code == 0:
                return ""
            output.seek(0)
            lines = output.read(1 << 16).decode("utf-8", "replace").split("\n")
            last = next((line.strip() for line in reversed(lines) if line.strip()), "")
            return f"{arguments[0]} ended with {code}{f': {last[:200]}' if last else ''}"
    except (OSError, ValueError) as error:
        return f"{arguments[0]}: {error}"
