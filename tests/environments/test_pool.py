"""The pool of environments: a call that hangs costs no other one time, and no process outlives the pool."""

import os
import queue
import threading

import pytest
from talker import Talker

from titan_pt.config.errors import ConfigError
from titan_pt.environments.pool import Call, EnvironmentPool, Failure, PoolLimits
from titan_pt.environments.protocol import EpisodeState, ModelTurn, Reply
from titan_pt.tasks.task import Problem


def call(number: int, done: "queue.SimpleQueue[Call]") -> Call:
    state = EpisodeState(Problem("talk", f"talk/{number}", "?", str(number)), ())
    return Call(0, state, ModelTurn("abc", 4), done, number)


def test_others_do_not_wait_for_a_call_that_hangs() -> None:
    pool = EnvironmentPool([("talk", Talker("hangs"))], PoolLimits(workers=1, timeout_seconds=300))
    done: queue.SimpleQueue[Call] = queue.SimpleQueue()
    calls = [call(number, done) for number in (1, 2, 3, 4)]  # the first one hangs, in the only process
    for each in calls:
        pool.submit(each)
    others = [done.get(timeout=200) for _ in range(3)]
    assert sorted(each.key for each in others) == [2, 3, 4] and calls[0].is_late and calls[0].result is None
    assert all(isinstance(each.result, Reply) and each.result.memory == sum(map(ord, "abc")) for each in others)
    pids = [process._process.pid for process in pool._processes]
    pool.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize(("fault", "seconds"), [("starts", 100.0), ("forks", 1.5)])
def test_a_death_is_named_though_a_child_lives_on(fault: str, seconds: float) -> None:
    pool = EnvironmentPool([("talk", Talker(fault))], PoolLimits(workers=1, timeout_seconds=seconds))
    done: queue.SimpleQueue[Call] = queue.SimpleQueue()
    pool.submit(call(1, done))
    result = done.get(timeout=60).result
    pool.close()
    assert isinstance(result, Failure) and result.kind == "error" and "ended with exit code 3" in result.message


def test_a_full_process_is_replaced_and_prints_nothing_to_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    pool = EnvironmentPool([("talk", Talker("fills")), ("talk", Talker("prints"))], PoolLimits(workers=1))
    done: queue.SimpleQueue[Call] = queue.SimpleQueue()
    pids = []
    for fault in (0, 1):
        each = call(1, done)
        each.environment = fault
        pool.submit(each)
        result = done.get(timeout=60).result
        assert isinstance(result, Reply if fault else Failure), result
        pids += [process._process.pid for process in pool._processes]
    pool.close()
    assert len(set(pids)) == len(pids) == 1, "the first had left"
    captured = capfd.readouterr()
    assert "what an environment prints" in captured.err and not captured.out


def test_an_environment_that_cannot_be_sent_is_refused() -> None:
    talker = Talker()
    object.__setattr__(talker, "fault", threading.Lock())
    with pytest.raises(ConfigError, match=r"grpo.tasks \('talk'\): its environment cannot be sent .* cannot pickle"):
        EnvironmentPool([("talk", talker)], PoolLimits())
