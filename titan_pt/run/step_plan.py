"""The number of steps of a run: as configured, or with training.max_hours as the deadline allows."""

from collections.abc import Mapping
from typing import Any

from titan_pt.protocols.context import TrainContext


class StepPlan:
    """Tells a run its last step, which is the configured one. `deadline.DeadlinePlan` plans it by the clock."""

    def __init__(self, context: TrainContext[Any]) -> None:
        self.context = context

    @property
    def advice(self) -> str:
        """The key that the run is sized by, which gives a finished one more steps."""
        config = self.context.config
        tokens = "training.tokens" if config.training.tokens else "training.steps"
        return "sft.epochs" if getattr(getattr(config, "sft", None), "epochs", None) else tokens

    @property
    def total_steps(self) -> int:
        """Steps that the run will have, as far as is known."""
        return self.context.run_size.steps

    def begin(self, saved: Mapping[str, Any] | None) -> None:
        """Start or resume the clock; `saved` is the `state_dict` of the checkpoint."""

    def keep_start(self) -> None:
        """Write down when the run was first started, so that its time counts over restarts."""

    def replan(self, step: int) -> None:
        """Plan the last step when `step` are done; the learning rate follows. A collective."""

    def step_ends(self) -> None:
        """Note that a step is done."""

    def paused(self, what: str, seconds: float, whole: float = 0.0) -> None:
        """Note that a "validation", "save" or "export" held up training; `whole` is its time in the background too."""

    def is_over(self) -> bool:
        """Whether the deadline stopped the run, and no signal did. A collective."""
        return False

    def describe_end(self) -> str:
        """Say how far the end of training is from the deadline, for the log."""
        return ""

    def state_dict(self) -> dict[str, Any] | None:
        """JSON for a checkpoint; None where there is no deadline."""
        return None
