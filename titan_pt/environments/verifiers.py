"""`verifiers:<id>`: tasksets and environments of the library verifiers (its v1 API), unmodified.

The library drives the model itself: it asks a chat endpoint for each turn. So an episode is played against an endpoint
of this process that gives the turns which the policy wrote, and is left where it asks for one that is not there yet:
what it asks with holds the answer to the last one. Each step plays from the beginning, as an `Environment` keeps
nothing: tokens stay those that the engine sampled. What is drawn from Python's global random numbers is the same each
time; an environment that would answer an earlier turn otherwise is an error.
"""

import asyncio
import atexit
import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from titan_pt.config.errors import ConfigError, shown
from titan_pt.config.schema.grpo import GrpoTask
from titan_pt.data.builtin.questions import is_held_out
from titan_pt.environments.protocol import CORRECT, Environment, EpisodeState, Message, ModelTurn, Reply
from titan_pt.tasks.problems import Entry, plain_problems
from titan_pt.tasks.task import Problem, Task, refuse_unused


def build(row: GrpoTask, _seed: int) -> Task:
    """The task of an installed taskset or environment; see docs/verifiers.md for its `options`."""
    refuse_unused(row, "holdout_fraction", "options")
    environment = VerifiersEnvironment(row.name.partition(":")[2], tuple(sorted(row.options.items())))
    names = [f"{row.name}/{number}" for number in range(len(environment.player.tasks))]
    entries = [Entry(name, name, "") for name in names]
    held_out = [entry for entry in entries if is_held_out(entry.id, row.holdout_fraction)]
    train = [entry for entry in entries if entry not in held_out]
    if not (held_out and train):
        raise ConfigError(
            f"holdout_fraction = {row.holdout_fraction:g} splits {len(entries)} tasks so that a part is empty"
        )
    try:
        environment.reset(Problem(row.name, names[0], "", ""))
    except RuntimeError as error:
        raise ConfigError(f"verifiers cannot play {shown(environment.name)} here: {error}") from None
    return Task(
        name=row.name,
        train=plain_problems(train, row.name),
        evaluation=plain_problems(held_out, row.name),
        grade=lambda _completion, _problem, _rule: False,  # an episode that was cut off
        rewards={"reward": 1.0},
        environment=environment,
    )


@dataclass(frozen=True)
class VerifiersEnvironment(Environment):
    """Gives the reward parts of verifiers, their weighted sum as "reward", and whether that is 1 or more."""

    name: str
    options: tuple[tuple[str, Any], ...]
    rewards = ("reward", CORRECT)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.player  # noqa: B018 - imports of seconds, before the time of any step counts

    @property
    def player(self) -> "_Player":
        """What plays in this process."""
        return _player(self.name, self.options)

    def reset(self, problem: Problem) -> Sequence[Message]:
        return self.player.play(problem.id, []).messages

    def step(self, state: EpisodeState, turn: ModelTurn) -> Reply:
        said = [dict(message) for message in (*state.messages, turn.message())]
        turns = [message["content"] for message in said if message["role"] == "assistant"]
        reply = self.player.play(state.problem.id, turns[-state.turn - 1 :])
        if reply.done:
            return reply
        if reply.messages[: len(said)] != said:
            raise RuntimeError(f"verifiers:{self.name} rewrites the conversation, or answers the same turns otherwise")
        return Reply(reply.messages[len(said) :])


class _Player:
    """An environment of verifiers, and the endpoint that it asks, in an event loop of its own."""

    def __init__(self, name: str, options: tuple[tuple[str, Any], ...]) -> None:
        try:
            from titan_pt.environments import verifiers_chat as chat
        except ImportError as error:
            raise ConfigError(
                f"needs the package verifiers ({error}): pip install 'titan-pt[verifiers]', with Python 3.11 or later"
            ) from None
        settings = dict(options)
        limit = settings.pop("limit", 1000)
        try:
            self._environment = chat.load(name, settings)
            self.tasks = list(islice(self._environment.taskset, limit))
        except Exception as error:  # each taskset checks its settings differently
            why = " ".join(f"{type(error).__name__}: {error}".split())
            fix = "; pip install the package that brings it" if isinstance(error, ImportError) else ""
            raise ConfigError(f"verifiers cannot load {shown(name)}: {why}{fix}") from error
        self._loop, self._serving = asyncio.new_event_loop(), self._environment.serving()
        self._context = self._loop.run_until_complete(chat.serve(self._answer))
        self._loop.run_until_complete(self._serving.__aenter__())
        atexit.register(self._close)

    def _close(self) -> None:
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))

    async def _answer(self, messages: list[dict[str, str]]) -> str | None:
        text = next(self._turns, None)
        if text is None:
            self._asked.set_result(messages)
            await self._left.wait()
        return text

    def play(self, problem_id: str, turns: Sequence[str]) -> Reply:
        """The whole conversation where a turn behind these is asked for, or the rewards where none is."""
        before = random.getstate()
        random.seed(problem_id)
        try:
            return self._loop.run_until_complete(self._played(int(problem_id.rpartition("/")[2]), turns))
        finally:
            random.setstate(before)

    async def _played(self, number: int, turns: Sequence[str]) -> Reply:
        self._turns, self._asked, self._left = iter(turns), self._loop.create_future(), asyncio.Event()
        playing = asyncio.ensure_future(self._environment.run_episode(self.tasks[number], self._context))
        await asyncio.wait({playing, self._asked}, return_when=asyncio.FIRST_COMPLETED)
        if self._asked.done():
            playing.cancel()
            await asyncio.wait({playing})
            self._left.set()
            return Reply(self._asked.result())
        episode = playing.result()
        for error in [*episode.errors, *(error for trace in episode.traces for error in trace.errors)]:
            raise RuntimeError(f"{error.type}: {error.message}")
        rewards = {name: float(each.score) for trace in episode.traces for name, each in trace.rewards.items() if each}
        total = float(sum(trace.reward for trace in episode.traces))
        return Reply(done=True, rewards={**rewards, "reward": total, CORRECT: float(total >= 1.0)})


_player = functools.cache(_Player)
