"""Tasksets and environments that were written against the API of verifiers alone, played by turns of our own."""

import importlib.util
import pickle
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.grpo import GrpoTask
from titan_pt.environments.protocol import EpisodeState, Message, ModelTurn, Reply
from titan_pt.tasks.task import Problem, Task, open_task

WRITTEN = Path(__file__).with_name("written_for_verifiers")
MISSING = importlib.util.find_spec("verifiers") is None
needs_verifiers = pytest.mark.skipif(MISSING, reason="verifiers is not installed: pip install 'titan-pt[verifiers]'")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Task]:
    monkeypatch.syspath_prepend(str(WRITTEN))
    return lambda name, **settings: open_task(GrpoTask(name=f"verifiers:{name}", holdout_fraction=0.3, **settings), 0)


def played(task: Task, problem: Problem, texts: Sequence[str]) -> tuple[list[Message], Reply]:
    """The conversation of these turns, and the last reply."""
    environment = task.environment
    assert environment is not None
    messages = list(environment.reset(problem))
    for number, text in enumerate(texts):
        turn = ModelTurn(text, 1)
        reply = environment.step(EpisodeState(problem, messages, number), turn)
        messages += [turn.message(), *reply.messages]
    return messages, reply


@needs_verifiers
def test_a_taskset_of_one_turn_is_played_and_scored(opened: Callable[..., Task]) -> None:
    task = opened("a_letters", options={"letters": "abcdefghij"})
    assert len(task.train) + len(task.evaluation) == 10
    problem = task.evaluation.get(0, 0)
    letter = "abcdefghij"[int(problem.id.rpartition("/")[2])]
    messages, reply = played(task, problem, [f"A{letter}"])
    assert messages[0] == {"role": "user", "content": f"Write {letter}."}
    assert reply.done
    assert dict(reply.rewards) == {"lowercase": 0.5, "letter": 1.0, "reward": 1.0, "correct": 1.0}
    assert dict(played(task, problem, [""])[1].rewards)["reward"] == 0.0


@needs_verifiers
def test_an_environment_of_turns_is_played_from_what_was_said(opened: Callable[..., Task]) -> None:
    task = opened("a_talk")
    problem = task.train.get(0, 0)
    messages, reply = played(task, problem, ["a", "B"])
    assert [message["role"] for message in messages] == ["system", *["user", "assistant"] * 2, "user"]
    assert messages[3]["content"].endswith("more")
    assert messages[5]["content"].endswith("small")
    assert not reply.done
    again = pickle.loads(pickle.dumps(task.environment))  # as in another process
    end = again.step(EpisodeState(problem, messages, 2), ModelTurn("c", 1))
    assert end == Reply((), True, {"good": pytest.approx(2 / 3), "reward": pytest.approx(2 / 3), "correct": 0.0})
    forged = [*messages[:3], {"role": "user", "content": "something else"}, *messages[4:]]
    with pytest.raises(RuntimeError, match="answers the same turns otherwise"):
        again.step(EpisodeState(problem, forged, 1), ModelTurn("c", 1))


@needs_verifiers
def test_the_settings_of_the_agent_end_an_episode(opened: Callable[..., Task]) -> None:
    task = opened("a_talk", options={"agent.max_turns": 1, "limit": 9})
    assert len(task.train) + len(task.evaluation) == 9
    _, reply = played(task, task.train.get(0, 0), ["a"])
    assert reply.done
    assert reply.rewards["reward"] == pytest.approx(1 / 3)


@needs_verifiers
@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("no_such_package", {}, "'no_such_package' not found .*; pip install the package that brings it"),
        ("a_letters", {"leters": "ab"}, "verifiers cannot load 'a_letters': ValidationError: .*taskset.leters Extra"),
        ("a_letters", {"letters": "a"}, "holdout_fraction = 0.3 splits 1 tasks"),
    ],
)
def test_what_cannot_be_played_is_refused(
    name: str, options: dict[str, str], said: str, opened: Callable[..., Task]
) -> None:
    with pytest.raises(ConfigError, match=said):
        opened(name, options=options)


def test_without_the_package_the_task_is_refused(opened: Callable[..., Task], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "verifiers", None)
    monkeypatch.delitem(sys.modules, "titan_pt.environments.verifiers_chat", raising=False)
    monkeypatch.delattr("titan_pt.environments.verifiers_chat", raising=False)
    with pytest.raises(ConfigError, match=r"needs the package verifiers .*pip install 'titan-pt\[verifiers\]'"):
        opened("other_letters")
