"""What a step function is given and what it returns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from torch import nn

if TYPE_CHECKING:
    from titan_pt.components.lr_scheduler import PlannedSchedule
    from titan_pt.components.tokenizer import Tokenizer
    from titan_pt.config.run_size import RunSize
    from titan_pt.config.schema.job_config import JobConfig
    from titan_pt.distributed.world import World
    from titan_pt.protocols.model_spec import ModelSpec


@dataclass
class TrainState:
    """Counters of a run, saved with every checkpoint."""

    step: int = 0
    """Finished optimizer steps, skipped ones included."""
    tokens_seen: int = 0
    """Tokens read, over all ranks."""
    trained_tokens: int = 0
    """Those of them that were learnt: not the questions of supervised fine-tuning."""
    skipped_steps: int = 0
    """Steps whose loss or gradient was not finite; they were not applied."""


class BaseDataLoader(Protocol):
    """What a step reads. Its state is that of the last finished step, and the same on any number of ranks."""

    def state_dict(self) -> dict[str, Any]:
        """JSON: this rank's part of the state; parts of different ranks have different keys, or equal values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the state, joined from all ranks, was taken; a ConfigError where that is not possible."""
        ...

    def identity(self) -> dict[str, Any]:
        """What must be equal for a state to mean the same data."""
        ...

    def progress(self) -> dict[str, list[float]]:
        """[tokens, passes] of each source, this rank's share."""
        ...

    def digest(self, state: dict[str, Any]) -> str:
        """A hash of all that was read up to a state, joined from all ranks: a checkpoint keeps it beside the state."""
        ...

    def close(self) -> None:
        """The run is over: end what prepares data ahead."""
        ...


Config = TypeVar("Config", bound="JobConfig", covariant=True)


@dataclass(frozen=True)
class TrainContext(Generic[Config]):
    """What was built before the loop."""

    config: Config
    world: "World"
    run_size: "RunSize"
    tokenizer: "Tokenizer"
    model: nn.Module
    model_spec: "ModelSpec[Any]"
    """Model family of `model`."""
    args: Any
    """Arguments that `model` was built from, an instance of `model_spec.args_type`."""
    optimizer: torch.optim.Optimizer
    schedule: "PlannedSchedule"
    """Learning rate of a step, by its number from 1."""
    dataloader: Any
    """A `BaseDataLoader`; what else it offers is between it and the step function that the same spec builds."""
    raise_if_preempted: Callable[[], None]
    """Raises Preempted on all ranks if one was asked to stop; call it between micro-batches."""

    @property
    def flops_per_token(self) -> float:
        """Floating-point operations of training on one token."""
        return self.model_spec.flops_per_token(self.args, self.config.training.seq_len)


@dataclass(frozen=True)
class StepMetrics:
    """What one optimizer step reports. Tensors stay on the device until a log line reads them."""

    loss: torch.Tensor
    """Mean over the step's global tokens."""
    grad_norm: torch.Tensor
    """Global L2 norm before clipping."""
    skipped: torch.Tensor
    """1.0 where the step was not finite and not applied, else 0.0."""
    lr: float
    tokens: int
    """Tokens read, over all ranks."""
    data_seconds: float
    """Waiting for data."""
    documents: tuple[str, ...] = ()
    """This rank's documents, to name them if the step goes wrong."""
    trained_tokens: int | None = None
    """Those of `tokens` that had a loss; None: all."""
    extra: Mapping[str, torch.Tensor | float] = field(default_factory=dict)
    """More values for metrics.jsonl and TensorBoard, by key."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """Texts for the console and TensorBoard, by tag."""


Step = Callable[[TrainState], StepMetrics | None]
"""One optimizer update; None when the data is spent. Raises Preempted with weights and data as before the step."""


Validator = Callable[[], dict[str, float]]
"""() -> values for the metrics row. A collective: call it on all ranks.

One that has `texts` shows them, by name, each time.
"""


@runtime_checkable
class StatefulStep(Protocol):
    """A step function with state beside the model, the optimizer and the data: every checkpoint holds it too."""

    def __call__(self, state: TrainState) -> StepMetrics | None: ...

    def tensors(self) -> dict[str, torch.Tensor]:
        """Loaded in place, sharded as they are."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """JSON; the same on all ranks."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set what `state_dict` gave."""
        ...


@dataclass(frozen=True)
class DryRunStep:
    """What a dry run does of a kind of training, on synthetic data. Its tensors hold no numbers: none may be read."""

    step: Step
    """One micro-batch and one update, as of a real step."""
    batch: str
    """One step of a real run in words: its batch over all ranks."""
    accumulates: bool
    """Whether a real step has several micro-batches: there are gradients already when the last one is computed."""
    held: Mapping[str, Sequence[torch.Tensor]] = field(default_factory=dict)
    """Tensors beside model and optimizer that stay in memory, by what they are for."""
    sampling_bytes: int = 0
    """Memory of a rank that is there only while it samples completions."""
    notes: Sequence[str] = ()
    """What was tried, for the log."""
