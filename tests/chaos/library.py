"""Faults of a process by a preloaded library: which operation, what happens to it, and the calendar's clock."""

import ctypes
import errno
import functools
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KINDS = ("open", "write", "rename", "fsync", "unlink", "mkdir", "truncate", "copy", "read")
CHANGES = KINDS[:-1]
"""Operations that change something; "open" is one that may write."""
ACTIONS = ("fail", "short", "kill before", "kill after", "signal")
COUNTERS = (*KINDS, "clock", "fired")


@dataclass(frozen=True)
class Rule:
    """What happens to the operations `first` to `last` of some kinds below the run folder."""

    action: str
    """One of ACTIONS: fail with an errno, write half, end the process before or behind (a write: in the middle)."""
    first: int
    last: int = 0
    """0: the first alone."""
    kinds: tuple[str, ...] = CHANGES
    value: int = errno.ENOSPC
    """The errno, or the signal."""
    part: str = ""
    """Counts operations on paths that hold this, below the run folder."""


@dataclass(frozen=True)
class Clock:
    """The calendar's clock of a start, in seconds."""

    offset: float = 0.0
    """From the beginning on."""
    call: int = 0
    """The reading at which it jumps by so much more; 0: never."""
    jump: float = 0.0
    freezes: bool = False
    """It stands still from there on."""


ON_TIME = Clock()


@functools.cache
def build() -> Path:
    """Compile the library; into a folder that is removed when this process ends."""
    compiler = shutil.which("cc")
    assert compiler, "no C compiler"
    folder = tempfile.TemporaryDirectory(prefix="chaos-")
    _kept.append(folder)
    target = Path(folder.name) / "preload.so"
    source = Path(__file__).with_name("preload.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", str(source), "-o", str(target), "-ldl"], check=True)
    return target


_kept: list[Any] = []


def arm(folder: str, counters: str, rules: Sequence[Rule], clock: Clock) -> None:
    """Let the faults begin, in this process, which was started with the library."""
    library = ctypes.CDLL(None)
    library.chaos_clock.argtypes = [ctypes.c_longlong, ctypes.c_long, ctypes.c_longlong, ctypes.c_int]
    library.chaos_rule.argtypes = [ctypes.c_long, ctypes.c_char_p, ctypes.c_long, ctypes.c_long, *[ctypes.c_int] * 2]
    for rule in rules:
        kinds = sum(1 << KINDS.index(kind) for kind in rule.kinds)
        last, action = rule.last or rule.first, ACTIONS.index(rule.action)
        assert library.chaos_rule(kinds, rule.part.encode(), rule.first, last, action, rule.value) == 0
    library.chaos_clock(int(clock.offset * 1e9), clock.call, int(clock.jump * 1e9), clock.freezes)
    assert library.chaos_arm(folder.encode(), counters.encode()) == 0


def read_counters(path: Path) -> dict[str, int]:
    """Operations of each kind that an armed process did, readings of the clock, and how often a fault happened."""
    content = path.read_bytes() if path.exists() else b""
    values = struct.unpack(f"{len(COUNTERS)}l", content) if content else [0] * len(COUNTERS)
    return dict(zip(COUNTERS, values, strict=True))
