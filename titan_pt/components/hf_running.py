"""Export a model while it trains."""

import logging
import time
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from torch.distributed.tensor import DTensor

from titan_pt.components.chat import knows_chat
from titan_pt.components.hf_export import Exported, export
from titan_pt.components.model_card import run_facts
from titan_pt.components.model_state import model_tensors
from titan_pt.components.tensor_readers import TensorInfo
from titan_pt.config.checks import model_args
from titan_pt.protocols.model_spec import get_model_spec
from titan_pt.protocols.step import StepParts, TrainState

logger = logging.getLogger("titan_pt")


class GatheredTensors:
    """The weights of a model in training, whole on every rank: all ranks read all tensors in the same order."""

    def __init__(self, model: nn.Module) -> None:
        self._tensors = model_tensors(model)
        self.infos = {name: TensorInfo(tuple(t.shape), t.dtype) for name, t in self._tensors.items()}

    def read(self, name: str) -> torch.Tensor:
        """A collective."""
        return self._gather(name).cpu()

    def place(self, name: str) -> str:
        return f"the model: {name}"

    def read_rest(self) -> None:
        """Take part in the gathering of what this rank has not read, and forget it."""
        for name in list(self._tensors):
            self._gather(name)

    def _gather(self, name: str) -> torch.Tensor:
        tensor = self._tensors.pop(name)
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def export_running(parts: StepParts, state: TrainState, target: Path) -> None:
    """Write the weights of this step, in the type they are computed in, as a Hugging Face folder.

    A collective. Rank 0 writes; where it cannot, that is an error line, and training goes on.
    """
    tensors = GatheredTensors(parts.model)
    if parts.world.is_main:
        start = time.monotonic()
        try:
            dtype = getattr(torch, parts.config.training.mixed_precision_param)
            export(_described(parts, state, tensors), target, dtype)
            logger.info(f"exported {target} in {time.monotonic() - start:.1f} s")
        except (OSError, SafetensorError, TypeError) as error:
            logger.error(f"{target} could not be exported: {type(error).__name__}: {error}; training goes on")
    tensors.read_rest()


def _described(parts: StepParts, state: TrainState, tensors: GatheredTensors) -> Exported:
    config, spec = parts.config, get_model_spec(parts.config.model.name)
    args = model_args(config, spec, parts.tokenizer.vocab_size)
    parameters = sum(parameter.numel() for parameter in parts.model.parameters())
    facts = run_facts(config.dump(), num_parameters=parameters, step=state.step, tokens=state.tokens_seen)
    assert spec.hugging_face is not None, "checked before the run starts"
    return Exported(
        args,
        spec.hugging_face,
        parts.tokenizer,
        tensors,
        facts,
        keep_padding=bool(config.model.from_hf),
        knows_chat=knows_chat(config.job.trainer, parts.tokenizer, parts.dataloader.identity()),
    )
