"""The reference model of the KL penalty: a frozen copy of the policy, renewed by grpo.reference_reset."""

import logging
from collections.abc import Callable

import torch
from torch import nn

from titan_pt.components.checkpoint.run_state import model_tensors
from titan_pt.config.schema.grpo import Grpo
from titan_pt.protocols.parts import OptimizerState

logger = logging.getLogger("titan_pt")


class Reference:
    """The model that the KL penalty keeps the policy close to.

    ProRL (arXiv 2505.24864, section 3.2) renews it when validation stagnates and starts the optimizer anew; ProRL v2
    every 200-500 steps and keeps the optimizer. Both are options of [grpo].

    Args:
        model: sharded like the policy; frozen here. The one of a policy with adapters has no tensors of its own.
    """

    def __init__(self, model: nn.Module, policy: nn.Module, optimizer: OptimizerState, options: Grpo) -> None:
        self.model = model.requires_grad_(False)
        self._policy, self._optimizer, self._options = policy, optimizer, options
        self._best, self._without_better = -1.0, 0  # below every accuracy

    def tensors(self) -> dict[str, torch.Tensor]:
        """Tensors of the reference for a checkpoint."""
        return model_tensors(self.model)

    def state_dict(self) -> dict[str, float | int]:
        """Counts of the plateau rule for a checkpoint, as JSON."""
        return {"best_accuracy": self._best, "evaluations_without_better": self._without_better}

    def load_state_dict(self, state: dict[str, float | int]) -> None:
        """Set the counts that `state_dict` gave."""
        self._best, self._without_better = float(state["best_accuracy"]), int(state["evaluations_without_better"])

    @torch.no_grad()
    def copy_policy(self) -> None:
        """Copy the policy's present weights."""
        weights = model_tensors(self._policy)
        for name, tensor in model_tensors(self.model).items():
            tensor.copy_(weights[name])

    def note_evaluation(self, accuracy: float) -> None:
        """Note the mean accuracy of an evaluation, by which a plateau is recognised."""
        if accuracy > self._best:
            self._best, self._without_better = accuracy, 0
        else:
            self._without_better += 1

    def renew_if_due(self, finished_steps: int) -> None:
        """Renew the reference where grpo.reference_reset asks for it; called before each step."""
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
            self._optimizer.reset()
        logger.info(
            f"step {finished_steps + 1}: the reference is now the policy of step {finished_steps}"
            + ("; the optimizer starts anew" if options.reset_optimizer else "")
        )
