"""`experimental.custom_import = "env_plugin"`: tasks in turns for a random model, and environments that fail."""

import os
import string
import time
from dataclasses import dataclass
from typing import Any

import rl_plugin

from titan_pt.config.schema.grpo import GrpoTask
from titan_pt.environments.protocol import Environment, EpisodeState, ModelTurn, Reply
from titan_pt.generation.engine import register_engine
from titan_pt.generation.native import build_native_engine
from titan_pt.tasks.task import Task, register_task

GARBAGE: dict[str, Any] = {
    "text": "too low",
    "nothing": None,
    "no message": Reply(["too low"]),  # type: ignore[list-item]
    "no text": Reply([{"role": "user", "content": 5}]),
    "no number": Reply(done=True, rewards={"correct": "yes"}),  # type: ignore[dict-item]
    "infinity": Reply(done=True, rewards={"correct": float("inf")}),
    "no end": Reply(),
    "a lambda": Reply(done=True, memory=lambda: None),
}


@dataclass(frozen=True)
class Talker(Environment):
    """Says how long a turn was, thrice; right where all the model's characters add up to an even number."""

    fault: str = ""
    rewards = ("correct", "said")

    def step(self, state: EpisodeState, turn: ModelTurn) -> Reply:
        total = (state.memory or 0) + sum(map(ord, turn.text))
        if self.fault and int(state.problem.gold) % 4 == 1:
            return fail(self.fault)
        done = state.turn == 2
        rewards = {"said": 1.0, **({"correct": float(total % 2 == 0)} if done else {})}
        return Reply([{"role": "user", "content": f"{len(turn.text)} <|im_end|>"}], done, rewards, total)


def fail(fault: str) -> Any:
    if fault == "hangs":
        time.sleep(600)
    if fault == "dies":
        os._exit(3)
    if fault == "raises":
        raise KeyError("no such word")
    if fault == "eats":
        return Reply(done=True, memory=[bytearray(10**8) for _ in range(100)])
    return GARBAGE[fault]


def make(row: GrpoTask, seed: int) -> Task:
    task = rl_plugin.make(row, seed)
    # One of these ends a turn of a random model soon.
    stop = tuple(string.ascii_letters + string.digits)
    environment = Talker(str(row.options.get("fault", "")))
    return Task(**{**vars(task), "environment": environment, "stop": stop, "rewards": {"correct": 1.0, "said": 0.1}})


def make_quiet(row: GrpoTask, seed: int) -> Task:
    return Task(**{**vars(make(row, seed)), "environment": None, "rewards": {"correct": 1.0}})


register_task("talk", make)
register_task("quiet", make_quiet)


class NoTurns:
    """An engine without conversations."""

    def __init__(self, *arguments: object) -> None:
        self._inner = build_native_engine(*arguments)  # type: ignore[arg-type]

    def generate(self, *arguments: Any) -> Any:
        return self._inner.generate(*arguments)

    def sync_weights(self, model: Any) -> None:
        self._inner.sync_weights(model)


register_engine("no turns", NoTurns)
