"""A time limit on calls of user-written functions, by the process's SIGALRM timer.

Worker processes would be the alternative. Forking copies a process that holds CUDA and threads, which is undefined;
spawning takes seconds and needs functions and problems that pickle; and every call would cross a pipe, where the
built-in rewards take microseconds. The timer cannot stop a call into C that does not return (a power with a huge
exponent), a loop around a bare `except:`, or a function that sets SIGALRM itself.
"""

import functools
import logging
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import TypeVar

logger = logging.getLogger("titan_pt")

T = TypeVar("T")

# A function may catch the first expiry, in a `finally` or a destructor: it expires again after this.
_REPEAT_SECONDS = 0.1


class TimeLimitExpired(BaseException):
    """A call took too long. It is no Exception: `except Exception` in a user's loop must not catch it."""


class TimeLimit:
    """Limits each of several calls to the same time; a context manager.

    The handler of SIGALRM and its timer are those of before again when the context ends. Outside the main thread,
    where Python runs no signal handlers, there is no limit, and a warning says so once.

    Args:
        seconds: limit of each call.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __enter__(self) -> "TimeLimit":
        self._acts = threading.current_thread() is threading.main_thread()
        if self._acts:
            self._start = time.monotonic()
            self._timer = signal.setitimer(signal.ITIMER_REAL, 0)
            self._handler = signal.getsignal(signal.SIGALRM)
        else:
            _warn_of_no_limit()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._acts:
            return
        signal.signal(signal.SIGALRM, signal.SIG_DFL if self._handler is None else self._handler)
        left, interval = self._timer
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - self._start), 1e-6), interval)

    def run(self, call: Callable[[], T]) -> T:
        """The value of a call; raises TimeLimitExpired where it takes longer than the limit."""
        if not self._acts:
            return call()
        signal.signal(signal.SIGALRM, _expire)  # each time: the call before may have set another
        signal.setitimer(signal.ITIMER_REAL, self.seconds, _REPEAT_SECONDS)
        try:
            return call()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


def _expire(_number: int, frame: FrameType | None) -> None:
    # Between the return of the call and the stop of the timer it is `run` itself that is interrupted: raised there, the
    # timer would go on and strike whatever runs later.
    if frame is None or frame.f_code is not TimeLimit.run.__code__:
        raise TimeLimitExpired


@functools.cache
def _warn_of_no_limit() -> None:
    logger.warning("Rewards are not graded in the main thread, so grpo.reward_timeout_seconds has no effect on them")
