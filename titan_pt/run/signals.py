"""SIGTERM, SIGINT, SIGUSR1 and SIGHUP become a flag that all ranks agree on between micro-batches."""

import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, TypeVar

from titan_pt.run.exit_codes import ExitCode, Preempted, record_exit_code
from titan_pt.run.heartbeat import beat

if TYPE_CHECKING:  # the handlers are installed before torch is imported
    from titan_pt.distributed.world import World

logger = logging.getLogger("titan_pt")

# SIGUSR1 is what Slurm sends before the time limit.
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
_requested, _interrupted, _progress = threading.Event(), threading.Event(), threading.Event()
_deadline = math.inf

T = TypeVar("T")


def install_handlers() -> None:
    """Let these signals set the stop flag and do nothing else; a second one changes nothing.

    Only a second SIGINT ends the process at once, as long as there is nothing to save (see `protect_progress`).
    """
    stop_at(math.inf)
    for event in (_requested, _interrupted, _progress):
        event.clear()
    nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # the run outlives its terminal
    for number in _SIGNALS[:-1] if nohup else _SIGNALS:
        signal.signal(number, take_signal)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        # A launcher that dies at once (kill -9, out of memory) cannot end its workers: let the kernel tell them.
        from titan_pt.run.parents import die_with_parent

        die_with_parent(signal.SIGTERM)


def ignore_signals() -> None:
    """Ignore all stop signals from now on: the exit code is decided, or another process decides."""
    for number in _SIGNALS if threading.current_thread() is threading.main_thread() else ():  # others take none
        signal.signal(number, signal.SIG_IGN)


def protect_progress() -> None:
    """Let no signal end the process before its finished steps are saved."""
    _progress.set()


def stop_at(moment: float) -> None:
    """Ask this process to stop at a moment of `time.monotonic`; infinity for never."""
    global _deadline
    _deadline = moment


def stop_requested() -> bool:
    """Whether this process was asked to stop, by a signal or because its time is over. Whoever asks is alive."""
    beat()
    return _requested.is_set() or time.monotonic() >= _deadline


def signalled() -> bool:
    """Whether a signal asked this process to stop."""
    return _requested.is_set()


def raise_if_preempted(world: "World") -> None:
    """Raise Preempted on all ranks if any of them was asked to stop. A collective: call it on all ranks."""
    if world.any(stop_requested()):
        raise Preempted


def until_stopped(items: Iterable[T]) -> Iterator[T]:
    """The items, until this process is asked to stop: then Preempted. For one rank's slow work in `World.together`."""
    for item in items:
        if stop_requested():
            raise Preempted
        yield item


def take_signal(number: int, _frame: FrameType | None = None) -> None:
    """Note a signal, of any rank, and do no more: a handler may run in the middle of anything."""
    if number == signal.SIGINT and _interrupted.is_set() and not _progress.is_set():
        record_exit_code(ExitCode.TERMINATED)
        os.write(sys.stderr.fileno(), b"Stopped by a second SIGINT before there was a finished step\n")
        os._exit(ExitCode.TERMINATED)
    if number == signal.SIGINT:
        _interrupted.set()
    _requested.set()
