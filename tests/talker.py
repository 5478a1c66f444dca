"""An environment for a random model, and ways to fail. No torch here: the processes of the pool import it."""

import os
import subprocess
import time
from dataclasses import dataclass
from typing import Any

from titan_pt.environments.protocol import Environment, EpisodeState, ModelTurn, Reply

CIRCLE: list[Any] = []
CIRCLE.append(CIRCLE)
GARBAGE: dict[str, Any] = {
    "text": "too low",
    "nothing": None,
    "no message": Reply(["too low"]),  # type: ignore[list-item]
    "no text": Reply([{"role": "user", "content": 5}]),
    "no number": Reply(done=True, rewards={"correct": "yes"}),  # type: ignore[dict-item]
    "infinity": Reply(done=True, rewards={"correct": float("inf")}),
    "no end": Reply(),
    "half a character": Reply([{"role": "user", "content": "\ud800"}]),
    "half a name": Reply(done=True, rewards={"\ud800": 1.0}),
    "a circle": Reply([{"role": "user", "content": "a", "more": CIRCLE}]),
    "no JSON": Reply([{"role": "user", "content": "a", "more": {1, 2}}]),
    "a lambda": Reply(done=True, memory=lambda: None),
}


@dataclass(frozen=True)
class Talker(Environment):
    """Says how long a turn was, thrice; right where all the model's characters add up to an even number."""

    fault: str = ""
    rewards = ("correct", "said")

    def step(self, state: EpisodeState, turn: ModelTurn) -> Reply:
        if self.fault == "prints":
            print("what an environment prints", flush=True)
        total = (state.memory or 0) + sum(map(ord, turn.text))
        if self.fault not in ("", "prints") and int(state.problem.gold) % 4 == 1:
            return fail(self.fault)
        done = state.turn == 2
        rewards = {"said": 1.0, **({"correct": float(total % 2 == 0)} if done else {})}
        return Reply([{"role": "user", "content": f"{len(turn.text)} <|im_end|>"}], done, rewards, total)


def fail(fault: str) -> Any:
    if fault == "hangs":
        time.sleep(600)
    if fault == "dies":
        os._exit(3)
    if fault == "starts":  # a program that outlives it
        subprocess.Popen(["sleep", "300"], close_fds=False)
        os._exit(3)
    if fault == "forks":
        if os.fork():
            os._exit(3)
        time.sleep(300)
    if fault == "fills":
        raise MemoryError
    if fault == "raises":
        raise KeyError("no such word")
    if fault == "eats":
        return Reply(done=True, memory=[bytearray(10**8) for _ in range(100)])
    return GARBAGE[fault]
