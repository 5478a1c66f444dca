"""The context of a step function, and the protocols of steps and validators."""

from collections.abc import Callable, Iterator, Mapping
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
    from titan_pt.protocols.parts import OptimizerState


@dataclass
class TrainState:
    """Counters of a run, saved with every checkpoint."""

    step: int = 0
    """Finished optimizer steps, skipped ones included."""
    tokens_seen: int = 0
    """Tokens read, over all ranks."""
    trained_tokens: int = 0
    """Tokens that had a loss, over all ranks; question tokens of fine-tuning have none."""
    skipped_steps: int = 0
    """Bad steps that were not applied and not made up for."""
    guard: dict[str, Any] = field(default_factory=dict)
    """What the answers to bad steps go by, as JSON (`components.bad_steps`); empty while there was none."""


Config = TypeVar("Config", bound="JobConfig", covariant=True)


@dataclass(frozen=True)
class TrainContext(Generic[Config]):
    """Everything that a step function is built from: config, ranks, model, optimizer, data."""

    config: Config
    world: "World"
    run_size: "RunSize"
    """Batch, streams and steps of the run."""
    tokenizer: "Tokenizer"
    model: nn.Module
    model_spec: "ModelSpec[Any]"
    """Model family of `model`."""
    args: Any
    """Arguments that `model` was built from, an instance of `model_spec.args_type`."""
    optimizer: torch.optim.Optimizer
    optimizer_state: "OptimizerState"
    schedule: "PlannedSchedule"
    """Learning rate of a step, by its number from 1."""
    dataloader: Any
    """A `BaseDataLoader` with the further methods that the step function of the same spec calls; None in a dry run."""
    raise_if_preempted: Callable[[], None]
    """Raises Preempted on all ranks if one was asked to stop; call it between micro-batches."""
    spikes: Any = None
    """The `LossSpikes` of training.spike_zscore; give it to `guarded_update`. None: off."""
    ema: Any = None
    """The `AveragedWeights` of training.ema_decay. None: off."""

    @property
    def flops_per_token(self) -> float:
        """Floating-point operations of training on one token."""
        return self.model_spec.flops_per_token(self.args, self.config.training.seq_len)


@dataclass(frozen=True)
class StepMetrics:
    """Figures of one optimizer step. Tensors stay on the device until a log line reads them."""

    loss: torch.Tensor
    """Mean loss over the step's global tokens."""
    grad_norm: torch.Tensor
    """Global L2 norm before clipping."""
    skipped: torch.Tensor
    """Above 0 where the step is bad and was not applied: 1, or the score of a spike (`guarded_update`), or what a guard
    of the step's own says; the same on all ranks."""
    lr: float
    """Learning rate of the step."""
    tokens: int
    """Tokens read, over all ranks."""
    data_seconds: float
    """Seconds that this rank waited for data."""
    documents: tuple[str, ...] = ()
    """Names of this rank's documents, for the error line of a step that is not finite."""
    trained_tokens: int | None = None
    """Tokens that had a loss, over all ranks; None: all of `tokens`."""
    extra: Mapping[str, torch.Tensor | float] = field(default_factory=dict)
    """More values for metrics.jsonl and TensorBoard, by key."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """Texts for the console and TensorBoard, by tag."""
    why_bad: str = "loss or gradient is not finite"
    """What is wrong where `skipped` is 1."""
    again: Callable[[], Iterator[tuple[Any, torch.Tensor | None]]] | None = None
    """Makes the step's batch again and does its forward and backward without an update, for the black box of a bad
    step. Yields each micro-batch, with `tokens_BL` and `positions_BL`, and the loss of its tokens. A collective."""


Step = Callable[[TrainState], StepMetrics | None]
"""One optimizer step; returns None at the end of the data.

Raises Preempted with weights and data as before the step."""


Validator = Callable[[], dict[str, float]]
"""() -> values for the row in metrics.jsonl. A collective: call it on all ranks.

A validator with an attribute `texts` has them shown by name each time.
"""


@runtime_checkable
class StatefulStep(Protocol):
    """A step function with state of its own, which every checkpoint holds beside model, optimizer and data.

    It may have a method `check_state(state, folder)`, called before a checkpoint is loaded, that raises a ConfigError
    where its state does not fit. Any step function may have `end(state)`, called where the run is done, and `close()`.
    """

    def __call__(self, state: TrainState) -> StepMetrics | None: ...

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors of the state; a checkpoint is loaded into them in place, sharded as they are."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the rest of the state as JSON, the same on all ranks."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set the state that `state_dict` returned."""
        ...
