"""`experimental.custom_import = "env_plugin"`: tasks in turns for a random model, and environments that fail."""

import string
from typing import Any

import rl_plugin
from talker import Talker

from titan_pt.config.schema.grpo import GrpoTask
from titan_pt.generation.engine import register_engine
from titan_pt.generation.native import build_native_engine
from titan_pt.tasks.task import Task, register_task


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
