"""What a completion is worth: registered functions, weighted, each guarded against errors, endless loops and NaN.

The time limit is a timer of the process, not a pool of worker processes: forking copies a process that holds CUDA and
threads, which is undefined; spawning takes seconds and needs functions and problems that pickle; and every reward would
cross a pipe, where the built-in ones take microseconds. What the timer cannot stop: a call into C that does not come
back (a power with a huge exponent), a loop around a bare `except:`, and a function that sets SIGALRM for itself.
"""

import functools
import logging
import math
import reprlib
import signal
import threading
import time
import traceback
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from titan_pt.protocols.registry import Registry

if TYPE_CHECKING:  # task.py needs the names of the rewards
    from titan_pt.tasks.task import Problem, Task

logger = logging.getLogger("titan_pt")

T = TypeVar("T")

# A function may catch the first expiry, in a `finally` or a destructor: it expires again after this.
_REPEAT_SECONDS = 0.1
# Far above any sensible reward; sums of larger ones leave float32.
_LARGEST = 1e30
_LONGEST_MESSAGE = 300


@dataclass(frozen=True)
class Sample:
    """One completion to be judged."""

    problem: "Problem"
    completion: str
    """Its text, without the token that ended it."""
    num_tokens: int
    """With that token."""
    max_new_tokens: int
    truncated: bool
    """Cut off at max_new_tokens."""


@dataclass(frozen=True)
class RewardProblem:
    """A reward function that failed on one completion."""

    reward: str
    """Its name."""
    problem_id: str
    kind: Literal["error", "timeout", "nan"]
    """It raised; took too long; gave no finite number."""
    message: str


@dataclass(frozen=True)
class Score:
    """What one completion is worth."""

    parts: dict[str, float]
    """Each reward by name, unweighted; 0 where it failed."""
    total: float
    """Their weighted sum."""
    problems: tuple[RewardProblem, ...] = ()


RewardFunction = Callable[[Sample, "Task"], float]
_REWARDS: Registry[RewardFunction] = Registry("reward {}")


def register_reward(name: str, function: RewardFunction) -> None:
    """Make `name` known to `rewards` of [[grpo.tasks]]. Twice is an error."""
    _REWARDS.register(name, function)


def known_rewards() -> set[str]:
    """Names of the registered rewards."""
    return set(_REWARDS)


def score(sample: Sample, task: "Task", timeout_seconds: float, given_up: Container[str] = ()) -> Score:
    """Every reward of the task. What a function does wrong becomes a RewardProblem and counts as 0.

    Args:
        given_up: rewards that are not asked again: they took too long too often.
    """
    parts: dict[str, float] = {}
    problems: list[RewardProblem] = []
    for name in task.rewards:
        value: float | None = None
        failure: _Failure | None = _Failure("timeout", "took too long before, and is not asked again in this step")
        if name not in given_up:
            value, failure = _attempt(functools.partial(_value, name, sample, task), timeout_seconds)
        parts[name] = value or 0.0
        if failure:
            problems.append(RewardProblem(name, sample.problem.id, failure.kind, failure.message))
    total = sum(weight * parts[name] for name, weight in task.rewards.items())
    return Score(parts, total, tuple(problems))


def grade(sample: Sample, task: "Task", rule: str, timeout_seconds: float) -> tuple[bool, tuple[RewardProblem, ...]]:
    """Whether the completion is right by a rule of the task's grading; guarded, and wrong where that fails."""
    value, failure = _attempt(lambda: bool(task.grade(sample.completion, sample.problem, rule)), timeout_seconds)
    if failure is None:
        return bool(value), ()
    return False, (RewardProblem(f"grade ({rule})", sample.problem.id, failure.kind, failure.message),)


def find_letter(sample: Sample, task: "Task", timeout_seconds: float) -> tuple[str | None, tuple[RewardProblem, ...]]:
    """The letter that the completion answers, guarded like a reward; None where there are none."""
    find = task.find_letter
    if find is None:
        return None, ()
    letter, failure = _attempt(lambda: find(sample.completion), timeout_seconds)
    if failure is None:
        return letter, ()
    return None, (RewardProblem("find_letter", sample.problem.id, failure.kind, failure.message),)


@dataclass(frozen=True)
class _Failure:
    kind: Literal["error", "timeout", "nan"]
    message: str


class _Expired(BaseException):
    """No Exception: `except Exception` in a user's loop must not swallow it."""


class _NotFinite(Exception):
    """Its text says what there was instead of a finite number."""


def _attempt(call: Callable[[], T], seconds: float) -> tuple[T | None, _Failure | None]:
    try:
        return _limited(call, seconds), None
    except _Expired:
        return None, _Failure("timeout", f"took longer than {seconds:g} s")
    except _NotFinite as error:
        return None, _Failure("nan", str(error))
    except (Exception, SystemExit) as error:  # exit() in a reward must not end the run as if it were finished
        return None, _Failure("error", _described(error))


def _limited(call: Callable[[], T], seconds: float) -> T:
    """The call's value; raises _Expired after `seconds`. SIGALRM and its timer are put back as they were."""
    if threading.current_thread() is not threading.main_thread():  # Python runs signal handlers in the main thread
        _warn_of_no_limit()
        return call()
    handler = signal.signal(signal.SIGALRM, _expire)
    start = time.monotonic()
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds, _REPEAT_SECONDS)
    try:
        return call()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if handler is None else handler)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - start), 1e-6), interval)


def _expire(_number: int, frame: FrameType | None) -> None:
    # Between the return of the call and the stop of the timer it is `_limited` itself that is interrupted: raised
    # there, the timer would go on and strike whatever runs later.
    if frame is None or frame.f_code is not _limited.__code__:
        raise _Expired


@functools.cache
def _warn_of_no_limit() -> None:
    logger.warning("Rewards are not graded in the main thread, so grpo.reward_timeout_seconds has no effect on them")


def _value(name: str, sample: Sample, task: "Task") -> float:
    value: Any = _REWARDS[name](sample, task)
    number = float(value) if hasattr(value, "__float__") else math.nan
    if not abs(number) <= _LARGEST:
        raise _NotFinite(f"gave {reprlib.repr(value)}, not a finite number")
    return number


def _described(error: BaseException) -> str:
    """The error and the line that raised it, in one line."""
    text = " ".join("".join(traceback.format_exception_only(error)).split())
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{text if len(text) <= _LONGEST_MESSAGE else text[: _LONGEST_MESSAGE - 3] + '...'}{where}"


def _correct(sample: Sample, task: "Task") -> float:
    """1 for a right answer in the strict form."""
    return float(task.grade(sample.completion, sample.problem, "strict"))


def _format(sample: Sample, task: "Task") -> float:
    """1 for any answer in the strict form, right or wrong."""
    assert task.find_answer is not None, "open_task refuses the reward without it"
    return float(task.find_answer(sample.completion) is not None)


def _length(sample: Sample, task: "Task") -> float:
    """Of a right answer, more for a shorter one: 0.5 (1 + cos(pi t / T)) for t of at most T tokens. A wrong one gets 0.

    The cosine length reward of ProRL v2 (its post of August 2025) with eta_min = 0 and eta_max = 1.
    """
    share = min(1.0, sample.num_tokens / sample.max_new_tokens)
    return 0.5 * (1.0 + math.cos(math.pi * share)) * _correct(sample, task)


register_reward("correct", _correct)
register_reward("format", _format)
register_reward("length", _length)
