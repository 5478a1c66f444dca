"""How far this process is, in a page of memory that a watcher may read (`watchdog.py`): a counter and a phase.

A process that looks whether it was asked to stop (`signals.stop_requested`) is alive, and so it beats there: before a
micro-batch, every 16 tokens of a completion, between documents. What takes long without looking calls `beat`.
"""

import contextlib
import os
from collections.abc import Iterator
from struct import Struct
from typing import Any

# Beats, whether it waits for another rank, process, rank, limit and that of such a wait in seconds, phase, limit's key.
PAGE = Struct("<QQQQdd64s64s")

_page = memoryview(bytearray(PAGE.size))
_words = _page[:16].cast("Q")
_comm: Any = None


def beat() -> None:
    """Note that this process gets on."""
    _words[0] += 1


def enter(what: str, limit: str, comm: Any = None) -> None:
    """Begin a phase; the longest time between two beats is a limit of `[comm]`: "init", "train", "save", "compile".

    Args:
        comm: the section, given once by a run; in other programs there are no phases.
    """
    global _comm
    _comm = comm or _comm
    if _comm:
        key, rank = f"{limit}_timeout_seconds", int(os.environ.get("RANK", "0"))
        names = (name.encode()[:63] for name in (what, f"comm.{key}"))
        limits = getattr(_comm, key), _comm.save_timeout_seconds
        PAGE.pack_into(_page, 0, _words[0] + 1, 0, os.getpid(), rank, *limits, *names)


@contextlib.contextmanager
def phase(what: str, limit: str) -> Iterator[None]:
    """Context of a phase inside another one. One that fails stays: it is where the process was."""
    before = bytes(_page[8:])
    enter(what, limit)
    yield
    _page[8:] = before
    beat()


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """Context in which this rank waits for others, however long they take: they beat."""
    _words[1] = 1
    try:
        yield
    finally:
        _words[1] = 0
        beat()


def write_to(memory: memoryview) -> None:
    """Use this memory for the page."""
    global _page, _words
    memory[:] = _page
    _page, _words = memory, memory[:16].cast("Q")
