"""Rewards and grading of one completion: registered functions, each guarded against errors, endless loops and NaN."""

import functools
import math
import reprlib
import traceback
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from titan_pt.tasks.task import REWARDS, Problem, Task, is_users_interrupt
from titan_pt.tasks.time_limit import TimeLimit, TimeLimitExpired

T = TypeVar("T")

# Far above any sensible reward; sums of larger ones leave float32.
_LARGEST = 1e30
_LONGEST_MESSAGE = 300


@dataclass(frozen=True)
class Sample:
    """One completion, as a reward function sees it."""

    problem: Problem
    completion: str
    """Text without the token that ended it."""
    num_tokens: int
    """Tokens of the completion, the one that ended it included."""
    max_new_tokens: int
    """Most tokens that the completion could have."""
    truncated: bool
    """Whether the completion was cut off at max_new_tokens."""


@dataclass(frozen=True)
class RewardProblem:
    """A failure of a reward or of the grading on one completion."""

    reward: str
    """Name of the reward; "grade (<rule>)" or "find_letter" for the grading."""
    problem_id: str
    kind: Literal["error", "timeout", "nan"]
    """The function raised; took too long; gave no finite number."""
    message: str


@dataclass(frozen=True)
class Score:
    """Rewards of one completion, and whether it is right by each rule of the grading."""

    parts: dict[str, float]
    """Each reward by name, unweighted; 0 where it failed."""
    total: float
    """Weighted sum of the rewards."""
    strict: bool
    official: bool
    lenient: bool
    letter: str | None = None
    """Multiple choice: the letter that the completion answers, or None."""
    problems: tuple[RewardProblem, ...] = ()
    """Failures, in the order of the calls; what failed counts as 0, wrong, or no letter."""


RewardFunction = Callable[[Sample, Task], float]


def register_reward(name: str, function: RewardFunction) -> None:
    """Make `name` known to `rewards` of [[grpo.tasks]]. Twice is an error."""
    REWARDS.register(name, function)


def score(
    sample: Sample,
    task: Task,
    timeout_seconds: float,
    given_up: Container[str] = (),
    given: Mapping[str, float] | None = None,
) -> Score:
    """Grade a completion by each rule, and compute every reward of its task.

    The grading is asked once for each rule; a reward that calls `task.grade` gets the same verdict.

    Args:
        timeout_seconds: limit of each function.
        given_up: rewards that are not called again, since they took too long too often.
        given: rewards that an environment decided; of "correct" 1 or more is right by every rule.
    """
    given = given or {}
    if "correct" in given:
        is_right = given["correct"] >= 1.0
        task = replace(task, grade=lambda *_: is_right)
    task = _with_kept_verdicts(task)
    guard = _Guard(sample.problem.id)
    with TimeLimit(timeout_seconds) as limit:
        parts = dict(given)
        for name in task.rewards:
            if name in given:
                continue
            if name in given_up:
                guard.note(name, "timeout", "took too long before, and is not asked again in this step")
                parts[name] = 0.0
            else:
                parts[name] = guard.call(name, functools.partial(_value, name, sample, task), limit) or 0.0
        right = {
            rule: bool(guard.call(f"grade ({rule})", functools.partial(_is_right, rule, sample, task), limit))
            for rule in ("strict", "official", "lenient")
        }
        find = task.find_letter
        letter = guard.call("find_letter", lambda: find(sample.completion), limit) if find else None
    total = sum(weight * parts[name] for name, weight in task.rewards.items())
    return Score(parts, total, **right, letter=letter, problems=tuple(guard.problems))


def _with_kept_verdicts(task: Task) -> Task:
    verdicts: dict[tuple[str, str, str], bool] = {}

    def grade(completion: str, problem: Problem, rule: str) -> bool:
        key = completion, problem.id, rule
        if key not in verdicts:
            verdicts[key] = task.grade(completion, problem, rule)
        return verdicts[key]

    return replace(task, grade=grade)


class _Guard:
    """Calls functions on one completion, and turns their failures into problems."""

    def __init__(self, problem_id: str) -> None:
        self._problem_id = problem_id
        self.problems: list[RewardProblem] = []

    def call(self, name: str, call: Callable[[], T], limit: TimeLimit) -> T | None:
        """The value of a call; None where it failed."""
        try:
            return limit.run(call)
        except TimeLimitExpired:
            self.note(name, "timeout", f"took longer than {limit.seconds:g} s")
        except _NotFinite as error:
            self.note(name, "nan", str(error))
        except BaseException as error:  # exit() or GeneratorExit in a reward must not end the run either
            if is_users_interrupt(error):
                raise
            self.note(name, "error", _described(error))
        return None

    def note(self, name: str, kind: Literal["error", "timeout", "nan"], message: str) -> None:
        """Add a problem."""
        self.problems.append(RewardProblem(name, self._problem_id, kind, message))


class _NotFinite(Exception):
    """A reward gave no finite number; the text says what it gave."""


def _is_right(rule: str, sample: Sample, task: Task) -> bool:
    return bool(task.grade(sample.completion, sample.problem, rule))


def _value(name: str, sample: Sample, task: Task) -> float:
    value: Any = REWARDS[name](sample, task)
    number = float(value) if hasattr(value, "__float__") else math.nan
    if not abs(number) <= _LARGEST:
        raise _NotFinite(f"gave {reprlib.repr(value)}, not a finite number")
    return number


def _described(error: BaseException) -> str:
    """An error and the line of code that raised it, in one line."""
    text = " ".join("".join(traceback.format_exception_only(error)).split())
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{text if len(text) <= _LONGEST_MESSAGE else text[: _LONGEST_MESSAGE - 3] + '...'}{where}"


def correct_reward(sample: Sample, task: Task) -> float:
    """1 for a completion that is right by the strict rule, else 0."""
    return float(task.grade(sample.completion, sample.problem, "strict"))


def format_reward(sample: Sample, task: Task) -> float:
    """1 for a completion with an answer in the strict form, right or wrong, else 0."""
    assert task.find_answer is not None, "open_task refuses the reward without it"
    return float(task.find_answer(sample.completion) is not None)


def length_reward(sample: Sample, task: Task) -> float:
    """0.5 (1 + cos(pi t / T)) for a right completion of t of at most T tokens, so more for a shorter one; else 0.

    The cosine length reward of ProRL v2 (its post of August 2025) with eta_min = 0 and eta_max = 1.
    """
    share = min(1.0, sample.num_tokens / sample.max_new_tokens)
    return 0.5 * (1.0 + math.cos(math.pi * share)) * correct_reward(sample, task)
