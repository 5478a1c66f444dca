"""Calls the `build_optimizers` of a plugin, whose mistakes are the user's to read."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.protocols.optimizer_spec import get_optimizer_spec
from titan_pt.protocols.plugins import reason, users_line
from titan_pt.run.exit_codes import Preempted


def build_own(model: nn.Module, _groups: Any, config: JobConfig) -> Optimizer:
    """The registered optimizer that `optimizer.name` names."""
    name = config.optimizer.name
    build = get_optimizer_spec(name).build
    if not config.experimental.custom_import:  # one of the package
        return build(model, config)
    return checked(build, f"build of optimizer.name = {name!r}")(model, config)


def checked(build: Callable[[nn.Module, Any], Any], said: str = "") -> Callable[[nn.Module, JobConfig], Optimizer]:
    """`build`, but what it raises, and what it gives that is no optimizer, is a ConfigError with file and line.

    Args:
        said: the function in a message; that of job.trainer by default.
    """

    def build_checked(model: nn.Module, config: JobConfig) -> Optimizer:
        function = said or f"build_optimizers of job.trainer = {config.job.trainer!r}"
        what = f"experimental.custom_import = {config.experimental.custom_import!r}: {function}"
        try:
            optimizer = build(model, config)
        except (ConfigError, Preempted, torch.OutOfMemoryError):
            raise
        except (Exception, GeneratorExit) as error:
            place = "" if users_line(error) else _place(build)
            raise ConfigError(f"{what}, a (model, config) -> Optimizer, fails: {reason(error)}{place}") from error
        if not isinstance(optimizer, Optimizer):
            kind = type(optimizer).__name__
            raise ConfigError(f"{what} gives a {kind} and no torch.optim.Optimizer{_place(build)}")
        return optimizer

    return build_checked


def _place(build: Callable[..., Any]) -> str:
    """Where a function is defined, in brackets; empty where it is no function of Python."""
    code = getattr(inspect.unwrap(build), "__code__", None)
    return f" ({code.co_filename}:{code.co_firstlineno})" if code else ""
