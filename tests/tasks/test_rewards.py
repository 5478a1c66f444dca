"""Rewards: their values, and that whatever a function does wrong stays inside it."""

import contextlib
import logging
import math
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch

from titan_pt.config.schema.grpo import Grpo, GrpoConfig
from titan_pt.run import signals as preemption
from titan_pt.tasks import rewards, time_limit
from titan_pt.tasks.grading import find_number, grade_gsm8k
from titan_pt.tasks.rewards import RewardProblem, Sample, Score, register_reward, score
from titan_pt.tasks.rollouts import GradingOptions, overlong_reward
from titan_pt.tasks.task import Problem, Task
from titan_pt.trainers.grpo.spec import grading_options

PROBLEM = Problem("numbers", "numbers/x.jsonl:1", "What is 9 + 9?", "18")
RIGHT, WRONG, FORMLESS = "9 + 9 = 18\n#### 18", "9 + 9 = 19\n#### 19", "It is 18."


class OneProblem:
    fingerprint = "one"

    def __len__(self) -> int:
        return 1

    def get(self, index: int, visit: int) -> Problem:
        return PROBLEM


def make_task(**changes: Any) -> Task:
    fields: dict[str, Any] = {
        "name": "numbers",
        "train": OneProblem(),
        "evaluation": OneProblem(),
        "grade": lambda completion, problem, rule: grade_gsm8k(completion, problem.gold, rule),
        "find_answer": find_number,
    }
    return Task(**{**fields, **changes})


def make_sample(completion: str = RIGHT, num_tokens: int = 10, max_new_tokens: int = 40) -> Sample:
    return Sample(PROBLEM, completion, num_tokens, max_new_tokens, truncated=False)


@pytest.fixture
def reward(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Score]:
    """The score by one function that is registered for this test alone."""
    monkeypatch.setattr(rewards.REWARDS, "_registered", dict(rewards.REWARDS))

    def run(function: Callable[[Sample, Task], Any], seconds: float = 10.0, **weights: float) -> Score:
        register_reward("mine", function)
        return score(make_sample(), make_task(rewards={"mine": 1.0, **weights}), seconds)

    return run


def only(result: Score) -> RewardProblem:
    (problem,) = result.problems
    assert (problem.reward, problem.problem_id, result.parts["mine"]) == ("mine", PROBLEM.id, 0.0)
    return problem


def failures(result: Score) -> list[tuple[str, str]]:
    return [(problem.reward, problem.kind) for problem in result.problems]


@pytest.mark.parametrize(
    ("completion", "correct", "form"), [(RIGHT, 1.0, 1.0), (WRONG, 0.0, 1.0), (FORMLESS, 0.0, 0.0), ("", 0.0, 0.0)]
)
def test_values_of_correct_and_format(completion: str, correct: float, form: float) -> None:
    result = score(make_sample(completion), make_task(rewards={"correct": 1.0, "format": 0.25}), 1.0)
    assert result.parts == {"correct": correct, "format": form}
    assert result.total == correct + 0.25 * form
    assert result.problems == ()


@pytest.mark.parametrize("tokens", [1, 10, 20, 39, 40, 41])
def test_length_reward_equals_the_formula(tokens: int) -> None:
    task = make_task(rewards={"length": 2.0})
    expected = (1 + math.cos(math.pi * min(tokens, 40) / 40)) / 2
    assert score(make_sample(RIGHT, tokens), task, 1.0).parts["length"] == pytest.approx(expected)
    assert score(make_sample(RIGHT, tokens), task, 1.0).total == pytest.approx(2 * expected)
    assert score(make_sample(WRONG, tokens), task, 1.0).total == 0.0


def test_zero_weights_are_measured_negative_ones_count(reward: Callable[..., Score]) -> None:
    result = reward(lambda sample, task: 0.5, correct=-2.0, format=0.0)
    assert result.parts == {"mine": 0.5, "correct": 1.0, "format": 1.0}
    assert result.total == 0.5 - 2.0


@pytest.mark.parametrize(
    "value", [0.5, 1, True, np.float32(0.5), np.int64(3), np.bool_(True), torch.tensor(0.5), np.array(0.5)]
)
def test_rewards_may_be_any_kind_of_number(reward: Callable[..., Score], value: Any) -> None:
    result = reward(lambda sample, task: value)
    assert type(result.parts["mine"]) is float and result.parts["mine"] == float(value)
    assert type(result.total) is float and not result.problems


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, 1e300, None, "1.0", b"1", [1.0], 1j, torch.tensor(math.nan), object()]
)
def test_a_reward_without_finite_number_counts_zero(reward: Callable[..., Score], value: Any) -> None:
    result = reward(lambda sample, task: value, correct=1.0)
    problem = only(result)
    assert problem.kind == "nan" and re.fullmatch("gave .*, not a finite number", problem.message)
    assert result.total == 1.0, "the other rewards count"


def fail(sample: Sample, task: Task) -> float:
    raise KeyError("no\nsuch  key")


def recurse(sample: Sample, task: Task) -> float:
    return recurse(sample, task)


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError


def fail_unprintably(sample: Sample, task: Task) -> float:
    raise Unprintable


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (fail, r"KeyError: 'no\\nsuch key' \(test_rewards.py:\d+\)"),
        (recurse, r"RecursionError: .*"),
        (fail_unprintably, r".*Unprintable.*"),
        (lambda sample: 1.0, r"TypeError: .*"),
        (lambda sample, task: torch.zeros(3), r"(RuntimeError|ValueError): .*"),
        (lambda sample, task: 10**400, r"OverflowError: .*"),
        (lambda sample, task: "x" * 10**6 + 1, r"TypeError: .*"),
    ],
)
def test_a_reward_that_raises_counts_zero(reward: Callable[..., Score], function: Any, message: str) -> None:
    problem = only(reward(function))
    assert problem.kind == "error" and re.fullmatch(message, problem.message), problem.message
    assert "\n" not in problem.message and len(problem.message) < 400


def sleep(sample: Sample, task: Task) -> float:
    time.sleep(60)
    return 1.0


def spin(sample: Sample, task: Task) -> float:
    while True:
        pass


def swallow_exceptions(sample: Sample, task: Task) -> float:
    while True:
        with contextlib.suppress(Exception):
            time.sleep(0.01)


def swallow_once(sample: Sample, task: Task) -> float:
    try:
        time.sleep(60)
    except BaseException:
        time.sleep(60)
    return 1.0


def wait_in_regex(sample: Sample, task: Task) -> float:
    return float(re.match(r"(a+)+$", "a" * 60 + "b") is not None)


@pytest.mark.parametrize("function", [sleep, spin, swallow_exceptions, swallow_once, wait_in_regex])
def test_a_reward_that_hangs_counts_zero(reward: Callable[..., Score], function: Any) -> None:
    start = time.monotonic()
    result = reward(function, 0.05, correct=1.0)
    assert time.monotonic() - start < 5.0
    problem = only(result)
    assert (problem.kind, problem.message) == ("timeout", "took longer than 0.05 s")
    assert result.total == 1.0


def test_a_given_up_reward_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rewards.REWARDS._registered, "slow", sleep)
    task = make_task(rewards={"correct": 1.0, "slow": 1.0})
    start = time.monotonic()
    result = score(make_sample(), task, 60.0, given_up={"slow"})
    assert time.monotonic() - start < 30
    assert result.total == 1.0
    assert failures(result) == [("slow", "timeout")]


def test_the_timer_never_expires_outside_a_function(reward: Callable[..., Score]) -> None:
    """Functions that end about when their time does: the expiry must not escape, nor the timer go on."""
    before = signal.getitimer(signal.ITIMER_REAL)
    seconds = 0.0005
    kinds = set()

    def borderline(sample: Sample, task: Task) -> float:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end - 0.00005:
            pass
        return 1.0

    register_reward("borderline", borderline)
    task = make_task(rewards={"borderline": 1.0})
    for _ in range(400):
        kinds |= {problem.kind for problem in score(make_sample(), task, seconds).problems}
    assert kinds <= {"timeout"}
    assert (signal.getitimer(signal.ITIMER_REAL)[0] > 0) == (before[0] > 0)
    time.sleep(0.15)  # longer than the repeat


@pytest.fixture
def alarms() -> Iterator[list[int]]:
    """Strikes of a handler of the test's own; what was there before comes back."""
    strikes: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        strikes.append(number)

    handler = signal.signal(signal.SIGALRM, note)
    timer = signal.setitimer(signal.ITIMER_REAL, 0)
    yield strikes
    signal.setitimer(signal.ITIMER_REAL, *timer)
    signal.signal(signal.SIGALRM, handler)


def test_another_timer_goes_on(alarms: list[int], reward: Callable[..., Score]) -> None:
    own = signal.getsignal(signal.SIGALRM)
    signal.setitimer(signal.ITIMER_REAL, 30.0, 7.0)
    reward(lambda sample, task: time.sleep(0.2) or 1.0)
    left, interval = signal.getitimer(signal.ITIMER_REAL)
    assert 20.0 < left <= 29.8 and interval == 7.0
    assert signal.getsignal(signal.SIGALRM) is own and alarms == []


def test_another_due_timer_expires_afterwards(alarms: list[int], reward: Callable[..., Score]) -> None:
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    assert reward(lambda sample, task: time.sleep(0.1) or 1.0).problems == ()
    time.sleep(0.05)
    assert alarms == [signal.SIGALRM]


def test_no_timer_is_left(alarms: list[int]) -> None:
    score(make_sample(), make_task(), 0.05)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_ctrl_c_ends_the_run(reward: Callable[..., Score]) -> None:
    def interrupted(sample: Sample, task: Task) -> float:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a process that has no other
    try:
        with pytest.raises(KeyboardInterrupt):
            reward(interrupted)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_stop_signal_does_not_interrupt_a_reward(reward: Callable[..., Score]) -> None:
    handlers = {number: signal.getsignal(number) for number in preemption._SIGNALS}
    try:
        preemption.install_handlers()

        def signalled(sample: Sample, task: Task) -> float:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.02)
            return 0.75

        assert reward(signalled).parts == {"mine": 0.75}
        assert preemption.stop_requested()
    finally:
        preemption._requested.clear()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_outside_the_main_thread_there_is_no_limit(
    reward: Callable[..., Score], caplog: pytest.LogCaptureFixture
) -> None:
    time_limit._warn_of_no_limit.cache_clear()
    results: list[Score] = []
    register_reward("slow", lambda sample, task: time.sleep(0.1) or 1.0)
    register_reward("failing", fail)
    task = make_task(rewards={"slow": 1.0, "failing": 1.0})
    with caplog.at_level(logging.WARNING, "titan_pt"):
        thread = threading.Thread(target=lambda: results.append(score(make_sample(), task, 0.02)))
        thread.start()
        thread.join()
    assert results[0].parts == {"slow": 1.0, "failing": 0.0} and len(results[0].problems) == 1
    assert [record.message for record in caplog.records] == [
        "Rewards are not graded in the main thread, so grpo.reward_timeout_seconds has no effect on them"
    ]


def test_a_failed_grading_counts_as_wrong() -> None:
    right, wrong = score(make_sample(RIGHT), make_task(), 1.0), score(make_sample(WRONG), make_task(), 1.0)
    assert (right.strict, right.official, right.lenient, right.problems) == (True, True, True, ())
    assert (wrong.strict, wrong.official, wrong.lenient, wrong.problems) == (False, False, False, ())
    found = score(make_sample(), make_task(grade=lambda *args: 1 / 0, rewards={"format": 1.0}), 1.0)
    assert (found.strict, found.parts) == (False, {"format": 1.0})
    names = ["grade (strict)", "grade (official)", "grade (lenient)"]
    assert failures(found) == [(name, "error") for name in names]
    found = score(make_sample(), make_task(grade=lambda *args: time.sleep(60)), 0.05)
    assert failures(found) == [(name, "timeout") for name in ("correct", *names)]
    found = score(make_sample(), make_task(find_letter=lambda text: 1 / 0), 1.0)
    assert (found.letter, found.strict, failures(found)) == (None, True, [("find_letter", "error")])


def test_each_rule_is_asked_once_a_completion(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def count(completion: str, problem: Problem, rule: str) -> bool:
        asked.append(rule)
        return grade_gsm8k(completion, problem.gold, rule)

    monkeypatch.setitem(
        rewards.REWARDS._registered,
        "mine",
        lambda sample, task: task.grade(sample.completion, sample.problem, "lenient") / 2,
    )
    task = make_task(grade=count, rewards={"correct": 1.0, "length": 1.0, "mine": 1.0})
    assert score(make_sample(), task, 1.0).parts["mine"] == 0.5
    assert sorted(asked) == ["lenient", "official", "strict"]
    assert score(make_sample(WRONG), task, 1.0).total == 0.0
    assert len(asked) == 6, "a verdict is of one completion"


def test_a_failed_grading_is_asked_again() -> None:
    """A timeout belongs to the function that ran out of time, so only verdicts are kept."""
    answers = iter([KeyError("once"), True])

    def unsure(completion: str, problem: Problem, rule: str) -> bool:
        answer = next(answers) if rule == "strict" else True
        if isinstance(answer, Exception):
            raise answer
        return answer

    found = score(make_sample(), make_task(grade=unsure), 1.0)
    assert (found.parts, found.strict) == ({"correct": 0.0}, True)
    assert failures(found) == [("correct", "error")]


def test_a_changed_alarm_handler_harms_no_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    def changes(sample: Sample, task: Task) -> float:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # it would end the process
        return 1.0

    monkeypatch.setitem(rewards.REWARDS._registered, "changes", changes)
    monkeypatch.setitem(rewards.REWARDS._registered, "hangs", sleep)
    found = score(make_sample(), make_task(rewards={"changes": 1.0, "hangs": 1.0}), 0.05)
    assert found.parts["changes"] == 1.0 and failures(found) == [("hangs", "timeout")]


def test_a_name_is_registered_once(reward: Callable[..., Score]) -> None:
    with pytest.raises(ValueError, match="'correct' is registered already"):
        register_reward("correct", lambda sample, task: 1.0)


def test_scoring_is_cheap() -> None:
    """256 samples of a step must not be noticed: one takes less than adding 10,000 numbers, some 200 microseconds."""
    sample, task = make_sample("9 + 9 = 18\n" * 20 + RIGHT), make_task()
    best = {"score": math.inf, "sum": math.inf}
    for _ in range(50):  # in turns: a machine that is busy is so for both
        for name, work in (("score", lambda: score(sample, task, 10.0)), ("sum", lambda: sum(range(10_000)))):
            start = time.perf_counter()
            for _ in range(20):
                work()
            best[name] = min(best[name], time.perf_counter() - start)
    assert best["score"] < best["sum"], best


def test_grading_options_have_the_config_defaults() -> None:
    assert grading_options(Grpo()) == GradingOptions()
    assert grading_options(Grpo(overlong="mask", reward_timeout_seconds=3.0)).overlong == "mask"


def test_an_episode_that_is_cut_off_pays_the_whole_penalty() -> None:
    options = GradingOptions(overlong="penalty", overlong_buffer=50, overlong_penalty=2.0)
    asked = {(40, False): 1.0, (175, False): 0.0, (200, True): -1.0, (40, True): -1.0}
    for (length, cut), wanted in asked.items():
        assert overlong_reward(1.0, length, cut, 200, options) == wanted


def test_the_buffer_of_the_penalty_is_within_an_episode() -> None:
    def wrong(buffer: int, **rollout: int) -> str:
        grpo = {"overlong": "penalty", "overlong_buffer": buffer, "tasks": [{"name": "guess_number"}]}
        config = GrpoConfig.model_validate({"grpo": grpo, "rollout": {"max_new_tokens": 16, **rollout}})
        return " ".join(said for _, said in config.broken_rules())

    assert "must be below rollout.max_new_tokens = 16" in wrong(64)
    assert not wrong(64, max_episode_tokens=300)
    assert "overlong_buffer = 300: must be below rollout.max_episode_tokens = 300" in wrong(300, max_episode_tokens=300)
