"""The protocols of a run's data loader and of its optimizer's state: for readers and type checkers, never loaded."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch


class BaseDataLoader(Protocol):
    """Data of a step function, with a state that fits any number of ranks.

    The state is that of the last finished step: batches prepared ahead do not count.
    """

    def state_dict(self) -> dict[str, Any]:
        """Return this rank's part of the state, as JSON.

        Parts of different ranks have different keys, or equal values.
        """
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state joined from all ranks; raises ConfigError where that is not possible."""
        ...

    def identity(self) -> dict[str, Any]:
        """Return what two runs must share so that a state of one means the same data in the other, as JSON.

        A loader may have `identity_keys`, {key of the identity: keys or tables of the TOML}, for messages.
        """
        ...

    def progress(self) -> dict[str, list[float]]:
        """Return [tokens, passes] read so far by this rank, by source."""
        ...

    def digest(self, state: dict[str, Any]) -> str:
        """Return a hash of all tokens read up to a state that is joined from all ranks, for checkpoints."""
        ...

    def close(self) -> None:
        """End the threads and processes that prepare data ahead."""
        ...


class OptimizerState(Protocol):
    """What a checkpoint holds of an optimizer; a resumed one goes on to the bit."""

    resets: bool
    """Whether `reset` can be called."""

    def check(self) -> None:
        """Before the first step: raise a ConfigError where the state will not be savable. A collective."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors of the state by name, sharded as they are."""
        ...

    def document(self) -> Any:
        """Return the rest of the state as JSON, None where there is nothing. A collective."""

    def targets(self, document: Any, folder: Path) -> dict[str, torch.Tensor]:
        """Return the tensors to load a checkpoint of this folder into; raises ConfigError where it does not fit."""
        ...

    def load(self, document: Any, tensors: Mapping[str, torch.Tensor]) -> None:
        """Set the state: the document of a checkpoint, and its targets, which are filled now."""

    def reset(self) -> None:
        """Let the state be as before the first step."""
