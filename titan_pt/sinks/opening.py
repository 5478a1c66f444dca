"""The sinks of a run beside TensorBoard: what they need, checked at the start, and how they are opened on rank 0."""

import importlib.util
import os
from typing import TYPE_CHECKING

from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.protocols.registry import import_attribute
from titan_pt.run.run_folder import run_folder
from titan_pt.sinks import SINKS, Sink, SinkContext
from titan_pt.sinks.background import BackgroundSink

if TYPE_CHECKING:
    from titan_pt.components.metrics import MetricRows


def check_sinks(config: JobConfig) -> None:
    """Check that the packages of built-in sinks are installed, and that W&B knows who asks where it is to be online.

    Raises:
        ConfigError: something is missing; tells the command that brings it.
    """
    problems = []
    for name in sorted(config.metrics.used_sinks & SINKS.builtin.keys()):
        if importlib.util.find_spec(name) is None:
            problems.append(
                f'metrics.sinks = ["{name}"]: the package {name} is not installed; '
                f"pip install 'titan-pt[{name}]', or pip install {name}"
            )
        elif os.environ.get("RANK", "0") == "0" and name == "wandb":
            problems += import_attribute("titan_pt.sinks.wandb:login_problems")()
    if problems:
        raise ConfigError(*problems)


def open_sinks(rows: "MetricRows", first_step: int) -> list[Sink]:
    """The sinks that the config names, each behind a thread of its own, and the port for Prometheus."""
    config, world = rows.context.config, rows.context.world
    context = SinkContext(config, run_folder(config), first_step, world.size)
    names = sorted(config.metrics.used_sinks - {"tensorboard"})
    sinks: list[Sink] = [BackgroundSink(name, SINKS[name], context) for name in names]
    if config.metrics.prometheus_port is not None:
        from titan_pt.sinks.prometheus import PrometheusSink

        sinks.append(PrometheusSink(rows, config.metrics.prometheus_host, config.metrics.prometheus_port))
    return sinks
