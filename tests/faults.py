"""`experimental.custom_import = "faults"`: a pretraining, "faulty", that goes wrong where `[fault]` says."""

import dataclasses
import os
import signal
import time
from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.job_config import Section
from titan_pt.protocols.context import Step, StepMetrics, TrainContext, TrainState, Validator
from titan_pt.protocols.trainer_spec import register_trainer_spec
from titan_pt.run.exit_codes import GaveUp, Stalled
from titan_pt.run.signals import signalled, stop_requested
from titan_pt.trainers import pretrain


class Fault(Section):
    """[fault]"""

    kind: Literal[
        "none",
        "signal",
        "nan_loss",
        "nan_gradient",
        "nan_token",
        "spike",
        "raise",
        "mistake",
        "give_up",
        "sleep",
        "work",
        "stall",
    ] = "none"
    """What goes wrong."""
    token: int = -1
    """Of "nan_token": the loss of a micro-batch that holds it is NaN."""
    steps: list[int] = Field(default_factory=list)
    """At which steps; with `during_validation`, at which validations of this process."""
    rank: int = -1
    """On which rank; -1: on all."""
    signals: list[str] = Field(default_factory=lambda: ["SIGTERM"])
    """Sent one after another."""
    to_parent: bool = False
    """Send them to the launcher."""
    seconds: float = 600.0
    """Length of a sleep, or of work that gets on."""
    during_validation: bool = False
    """In the second micro-batch of a validation, not of a step."""


def build_step(context: TrainContext) -> Step:
    fault: Fault = context.config.fault  # type: ignore[attr-defined]
    now = {"step": 0, "calls": 0}

    def before_micro_batch() -> None:
        now["calls"] += 1
        if now["calls"] == 2 and not fault.during_validation and is_here(fault, context, now["step"]):
            happen(fault)
        if fault.kind == "stall" and now["calls"] == 2:  # together, as the loader tells it
            context.world.together(lambda: stall(fault, context, now["step"]))
        context.raise_if_preempted()

    inner = pretrain.build_step(dataclasses.replace(context, raise_if_preempted=before_micro_batch))
    if fault.kind == "nan_token":
        poison(context.model, "nan_loss", lambda tokens_BL: bool((tokens_BL == fault.token).any()))
    elif fault.kind.startswith("nan_") or fault.kind == "spike":
        poison(context.model, fault.kind, lambda _tokens_BL: is_here(fault, context, now["step"]))

    def step(state: TrainState) -> StepMetrics | None:
        now["step"], now["calls"] = state.step + 1, 0
        return inner(state)

    return step


def build_validator(context: TrainContext, step: Step) -> Validator | None:
    fault: Fault = context.config.fault  # type: ignore[attr-defined]
    now = {"validation": 0, "calls": 0}

    def before_micro_batch() -> None:
        now["calls"] += 1
        if now["calls"] == 2 and fault.during_validation and is_here(fault, context, now["validation"]):
            happen(fault)
        context.raise_if_preempted()

    inner = pretrain.SPEC.build_validator(dataclasses.replace(context, raise_if_preempted=before_micro_batch), step)
    if inner is None:
        return None

    def validate() -> dict[str, float]:
        now["validation"], now["calls"] = now["validation"] + 1, 0
        return inner()

    return validate


def is_here(fault: Fault, context: TrainContext, step: int) -> bool:
    return step in fault.steps and fault.rank in (-1, context.world.rank)


def happen(fault: Fault) -> None:
    if fault.kind == "raise":
        raise RuntimeError("the fault\nhas two lines")
    if fault.kind == "mistake":
        raise ConfigError("fault.kind: a mistake that one rank found")
    if fault.kind == "give_up":
        raise GaveUp("one rank had enough")
    if fault.kind in ("sleep", "work"):
        end, asked = time.monotonic() + fault.seconds, stop_requested if fault.kind == "work" else signalled
        while time.monotonic() < end and not asked():  # deaf to signals, it would be killed 30 s later
            time.sleep(0.1)
    if fault.kind == "signal":
        for name in fault.signals:
            os.kill(os.getppid() if fault.to_parent else os.getpid(), getattr(signal, name))


def stall(fault: Fault, context: TrainContext, step: int) -> None:
    if is_here(fault, context, step):
        raise Stalled("no data")


def poison(model: nn.Module, kind: str, is_now: Callable[[torch.Tensor], bool]) -> None:
    """NaN in the loss and what follows from it, or only in the gradient; or a loss of ten times its size."""

    def hook(_module: nn.Module, arguments: Any, losses: Any) -> Any:
        if not torch.is_grad_enabled() or not is_now(arguments[0]):
            return losses
        factor = 10.0 if kind == "spike" else float("nan")
        losses = dataclasses.replace(losses, total=losses.total * factor)
        if kind != "nan_gradient":
            losses = dataclasses.replace(losses, cross_entropy_T=losses.cross_entropy_T * factor)
        return losses

    model.register_forward_hook(hook)


register_trainer_spec(
    dataclasses.replace(
        pretrain.SPEC, name="faulty", build_step=build_step, build_validator=build_validator, sections={"fault": Fault}
    )
)
