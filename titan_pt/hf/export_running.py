"""Export a model while it trains."""

import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn

from titan_pt.components.checkpoint.run_state import model_tensors
from titan_pt.distributed.init import whole
from titan_pt.hf.chat import knows_chat
from titan_pt.hf.export import Exported, export
from titan_pt.hf.model_card import averaged_facts, run_facts
from titan_pt.hf.tensor_readers import TensorInfo
from titan_pt.protocols.context import TrainContext, TrainState

logger = logging.getLogger("titan_pt")


class GatheredTensors:
    """The weights of a model in training, whole on every rank: all ranks read all tensors in the same order."""

    def __init__(self, model: nn.Module) -> None:
        self._tensors = model_tensors(model)
        self.infos = {name: TensorInfo(tuple(t.shape), t.dtype) for name, t in self._tensors.items()}

    def read(self, name: str) -> torch.Tensor:
        """Gather the whole tensor on the CPU. A collective."""
        return self._gather(name).cpu()

    def place(self, name: str) -> str:
        return f"the model: {name}"

    def read_rest(self) -> None:
        """Take part in the gathering of what this rank has not read, and forget it."""
        for name in list(self._tensors):
            self._gather(name)

    def _gather(self, name: str) -> torch.Tensor:
        return whole(self._tensors.pop(name))


def export_if_due(
    context: TrainContext,
    state: TrainState,
    run_folder: Path,
    pause: Callable[[str], contextlib.AbstractContextManager[None]],
    *,
    last: bool,
    owed: bool,
) -> None:
    """Write `hf/step-N` for the last step, and where checkpoint.export_hf_interval divides N. A collective.

    Args:
        pause: context of what training waits for.
        owed: not where an earlier start wrote it.
    """
    step, target = state.step, run_folder / "hf" / f"step-{state.step}"
    due = step and (last or step % context.config.checkpoint.export_hf_interval == 0)
    if due and not (owed and context.world.on_main(target.exists)):
        with pause("export"):
            export_running(context, state, target)


def export_running(context: TrainContext, state: TrainState, target: Path) -> None:
    """Write this step's weights, by checkpoint.export_weights, as a Hugging Face folder in the type of the computation.

    A collective. Rank 0 writes; where it cannot, that is an error line, and training goes on.
    """
    averaged = context.config.checkpoint.export_weights == "ema"
    with context.ema.swapped() if averaged else contextlib.nullcontext():
        _export(context, state, target)


def _export(context: TrainContext, state: TrainState, target: Path) -> None:
    tensors = GatheredTensors(context.model)
    if context.world.is_main:
        start = time.monotonic()
        try:
            dtype = getattr(torch, context.config.training.mixed_precision_param)
            export(_described(context, state, tensors), target, dtype)
            logger.info(f"exported {target} in {time.monotonic() - start:.1f} s")
        except (OSError, SafetensorError, TypeError) as error:
            logger.error(f"{target} could not be exported: {type(error).__name__}: {error}; training goes on")
    tensors.read_rest()


def _described(context: TrainContext, state: TrainState, tensors: GatheredTensors) -> Exported:
    config = context.config
    parameters = sum(parameter.numel() for parameter in context.model.parameters())
    facts = run_facts(config.dump(), num_parameters=parameters, step=state.step, tokens=state.tokens_seen)
    if config.checkpoint.export_weights == "ema":
        facts |= averaged_facts({"ema": context.ema.state_dict()}, "ema")
    layout = context.model_spec.layout()
    assert layout is not None, "checked before the run starts"
    return Exported(
        context.args,
        layout,
        context.tokenizer,
        tensors,
        facts,
        keep_padding=bool(config.model.from_hf),
        knows_chat=knows_chat(config.job.trainer, context.tokenizer, context.dataloader.identity()),
    )
