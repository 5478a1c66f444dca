"""The reference model of the KL penalty: a frozen copy of the policy, renewed as grpo.reference_reset says."""

import logging
from collections.abc import Callable

import torch
from torch import nn

from titan_pt.components.checkpoint.run_state import model_tensors
from titan_pt.components.optimizer import reset
from titan_pt.config.schema.grpo import Grpo

logger = logging.getLogger("titan_pt")


class Reference:
    """What the policy is kept close to.

    ProRL (arXiv 2505.24864, section 3.2) renews it when validation stagnates and starts the optimizer anew; ProRL v2
    every 200-500 steps and keeps the optimizer. Both are options of [grpo].

    Args:
        model: sharded like the policy; frozen here.
    """

    def __init__(self, model: nn.Module, policy: nn.Module, optimizer: torch.optim.Optimizer, options: Grpo) -> None:
        self.model = model.requires_grad_(False)
        self._policy, self._optimizer, self._options = policy, optimizer, options
        self._best, self._without_better = -1.0, 0  # below every accuracy

    def tensors(self) -> dict[str, torch.Tensor]:
        """For a checkpoint."""
        return model_tensors(self.model)

    def state_dict(self) -> dict[str, float | int]:
        """JSON."""
        return {"best_accuracy": self._best, "evaluations_without_better": self._without_better}

    def load_state_dict(self, state: dict[str, float | int]) -> None:
        """Set what `state_dict` gave."""
        self._best, self._without_better = float(state["best_accuracy"]), int(state["evaluations_without_better"])

    @torch.no_grad()
    def copy_policy(self) -> None:
        """Become the policy of now."""
        own = model_tensors(self.model)
        for name, tensor in model_tensors(self._policy).items():
            own[name].copy_(tensor)

    def note_evaluation(self, accuracy: float) -> None:
        """The mean accuracy of an evaluation: what a plateau is seen by."""
        if accuracy > self._best:
            self._best, self._without_better = accuracy, 0
        else:
            self._without_better += 1

    def renew_if_due(self, finished_steps: int) -> None:
        """Called before each step."""
        options = self._options
        if finished_steps == 0:
            self.copy_policy()
            return
        due: dict[str, Callable[[], bool]] = {
            "none": lambda: False,
            "interval": lambda: finished_steps % options.reference_reset_interval == 0,
            "plateau": lambda: self._without_better >= options.plateau_evals,
        }
        if not due[options.reference_reset]():
            return
        self._without_better = 0
        self.copy_policy()
        if options.reset_optimizer:
            reset(self._optimizer)
        logger.info(
            f"step {finished_steps + 1}: the reference is now the policy of step {finished_steps}"
            + ("; the optimizer starts anew" if options.reset_optimizer else "")
        )
