"""The exit codes and reasons that workers told their launcher (`exit_codes.record_exit_code`)."""

import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

from titan_pt.run.exit_codes import ExitCode


def read_exit_codes(folder: Path) -> list[int]:
    """The codes that workers recorded."""
    return [code for code, _ in _records(folder)]


def read_reasons(folder: Path, code: int) -> list[str]:
    """The reasons of the workers that left with this code, each once."""
    return list(dict.fromkeys(reason for recorded, reason in _records(folder) if recorded == code and reason))


def pick(codes: Iterable[int]) -> int:
    """One exit code for all workers.

    A mistake or a decision of any worker counts before the rest, which were then ended by the agent (negative codes).
    """
    found = set(codes)
    for code in (ExitCode.USAGE, ExitCode.GAVE_UP, ExitCode.PREEMPTED, ExitCode.TERMINATED):
        if code in found:
            return code
    if found == {0}:
        return ExitCode.DONE
    stopped = {-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP}  # before the worker could handle it
    return ExitCode.TERMINATED if found and found <= {0, *stopped} else ExitCode.FAILED


def _records(folder: Path) -> Iterator[tuple[int, str]]:
    for path in sorted(folder.glob("rank-*")):
        code, _, reason = path.read_text("utf-8").partition("\n")
        if code:  # empty: killed while it wrote
            yield int(code), reason
