"""`experimental.custom_import = "rl_plugin"`: tasks that a random model solves half of the time, never, or always."""

import functools
import os
import signal
import time
from dataclasses import dataclass

from titan_pt.config.schema.grpo import GrpoTask
from titan_pt.generation.engine import register_engine
from titan_pt.generation.native import build_native_engine
from titan_pt.tasks.rewards import Sample, register_reward
from titan_pt.tasks.task import Problem, Task, register_task


@dataclass(frozen=True)
class Numbers:
    """ "Say something about 17." and so on."""

    name: str
    first: int
    size: int

    @property
    def fingerprint(self) -> str:
        return f"{self.name}-{self.first}-{self.size}"

    def __len__(self) -> int:
        return self.size

    def get(self, index: int, visit: int) -> Problem:
        number = self.first + index
        return Problem(self.name, f"{self.name}/{number}", f"Say something about {number}, time {visit}.", str(number))


def even(completion: str, _problem: Problem, _rule: str) -> bool:
    """Whether the completion's characters add up to an even number: a coin for a random model."""
    return sum(map(ord, completion)) % 2 == 0


def make(row: GrpoTask, _seed: int, grade: object = even) -> Task:
    size = int(row.options.get("size", 40))
    return Task(
        name=row.name,
        train=Numbers(row.name, 0, size),
        evaluation=Numbers(row.name, 1000, 12),
        grade=grade,  # type: ignore[arg-type]
        open_ended=True,
    )


def chosen(row: GrpoTask, seed: int) -> Task:
    """A question of letters: the policy cannot know the answer."""
    task = make(row, seed, lambda completion, problem, rule: completion[:1] == "A")
    return Task(**{**vars(task), "letters": ("A", "B"), "find_letter": lambda text: text[:1] or None})


def unsure(completion: str, problem: Problem, rule: str) -> bool:
    if rule == "official":
        raise KeyError("no such rule")
    return even(completion, problem, rule)


def fails(_sample: Sample, _task: Task) -> float:
    raise KeyError("no such thing")


def leaves(sample: Sample, _task: Task) -> float:
    """Raise what is no Exception."""
    raise (GeneratorExit, KeyboardInterrupt, BaseException)[int(sample.problem.gold) % 3]


def hangs(sample: Sample, _task: Task) -> float:
    if int(sample.problem.gold) % 2:
        time.sleep(60)
    return 0.0


def stops(sample: Sample, _task: Task) -> float:
    """Ask the run to stop while it grades, once."""
    marker = os.environ["RL_PLUGIN_MARKER"]
    if sample.problem.gold == os.environ["RL_PLUGIN_GOLD"] and not os.path.exists(marker):
        open(marker, "w").close()
        os.kill(os.getpid(), signal.SIGTERM)
    return 0.0


class Stopping:
    """Asks the run to stop, once, while it samples with its fourth weights: evaluation, step, evaluation, step."""

    def __init__(self, *arguments: object) -> None:
        self._inner = build_native_engine(*arguments)  # type: ignore[arg-type]
        self._policies = 0

    def sync_weights(self, *arguments: object) -> None:
        self._policies += 1
        self._inner.sync_weights(*arguments)  # type: ignore[arg-type]

    def generate(self, *arguments: object, **options: object) -> object:
        marker = os.environ["RL_PLUGIN_MARKER"]
        if self._policies == 4 and not os.path.exists(marker):
            open(marker, "w").close()
            os.kill(os.getpid(), signal.SIGTERM)
        return self._inner.generate(*arguments, **options)  # type: ignore[arg-type]


register_task("coin", make)
register_task("second_coin", make)
register_task("hopeless", functools.partial(make, grade=lambda completion, problem, rule: False))
register_task("solved", functools.partial(make, grade=lambda completion, problem, rule: True))
register_task("letters", chosen)
register_task("unsure", functools.partial(make, grade=unsure))
register_reward("fails", fails)
register_reward("hangs", hangs)
register_reward("leaves", leaves)
register_reward("nan", lambda sample, task: float("nan"))
register_reward("stops", stops)
register_engine("stopping", Stopping)
