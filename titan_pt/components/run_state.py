"""What a checkpoint holds of a run: taken from the run's parts, and put back into them."""

import base64
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from titan_pt.components.checkpoint import Documents, load_documents, load_tensors
from titan_pt.components.checkpoint_steps import honoured, is_hf_folder
from titan_pt.components.hf_weights import load_hf_weights
from titan_pt.components.identity import check_identity, check_model_identity
from titan_pt.components.model_state import model_tensors
from titan_pt.components.optimizer import optimizer_tensors
from titan_pt.config.errors import ConfigError
from titan_pt.protocols.step import StatefulStep, Step, StepParts, TrainState

logger = logging.getLogger("titan_pt")


@dataclass(frozen=True)
class Resumed:
    """What the trainer itself goes on from."""

    state: TrainState
    owed_row: dict[str, Any] | None
    """The log row of this step, where a signal came between the step and its validation."""
    deadline: dict[str, Any] | None
    """The plan of a run with training.max_hours."""


def run_tensors(parts: StepParts, step: Step | None = None, *, optimizer: bool = True) -> dict[str, torch.Tensor]:
    """Model, optimizer and the step function's own, sharded as they are, by the names that checkpoints use."""
    # The model first: reading its state shards it again after a validation, and the optimizer's names need that.
    tensors = {f"model.{name}": tensor for name, tensor in model_tensors(parts.model).items()}
    if optimizer:
        state = optimizer_tensors(parts.model, parts.optimizer)
        tensors |= {f"optimizer.{name}": tensor for name, tensor in state.items()}
    if isinstance(step, StatefulStep):
        tensors |= {f"step.{name}": tensor for name, tensor in step.tensors().items()}
    return tensors


def run_documents(parts: StepParts, step: Step, identity: Mapping[str, Any], resumed: Resumed) -> Documents:
    """Everything that is not a tensor, gathered from all ranks.

    Args:
        resumed: what the trainer will go on from.
    """
    world, loader = parts.world, parts.dataloader
    streams: dict[str, Any] = {}
    for part in world.gather(loader.state_dict()):
        streams |= part
    train = {
        **asdict(resumed),
        "identity": dict(identity),
        "world_size": world.size,
        "rng": world.gather(rng_state(world.device)),
        "step": step.state_dict() if isinstance(step, StatefulStep) else {},
        "honoured": parts.config.checkpoint.model_dump(include={"load_step", "exclude_from_loading"}),
    }
    data = {"identity": loader.identity(), "token_hash": loader.digest(streams), "streams": streams}
    return Documents(train, data, parts.config.to_toml())


def load_run(parts: StepParts, step: Step, folder: Path, identity: Mapping[str, Any]) -> Resumed:
    """Put a step back into the parts, without what checkpoint.exclude_from_loading names.

    Raises:
        ConfigError: it is of another run, or the data read differently now; on all ranks.
    """
    world, documents = parts.world, load_documents(folder)
    excluded = _excluded(parts, documents, identity)
    check_identity(_without(documents.train["identity"], excluded), _without(identity, excluded), folder)
    if "data" not in excluded:
        check_identity(
            {"data": documents.data["identity"]},
            {"data": parts.dataloader.identity()},
            folder,
            way_out='set the config back, or start the data anew with checkpoint.exclude_from_loading = ["data"]',
        )
    load_tensors(folder, run_tensors(parts, step, optimizer="optimizer" not in excluded), world)
    if "data" not in excluded:
        streams = documents.data["streams"]
        if parts.dataloader.digest(streams) != documents.data["token_hash"]:
            raise ConfigError(f"{folder}: the states of its data streams do not belong to its token hash; restore it")
        world.together(lambda: parts.dataloader.load_state_dict(streams))
    if isinstance(step, StatefulStep):
        step.load_state_dict(documents.train["step"])
    states = documents.train["rng"]
    if len(states) == world.size:
        set_rng_state(states[world.rank], world.device)
    train = documents.train
    return Resumed(TrainState(**train["state"]), train["owed_row"], train.get("deadline"))


def load_weights(parts: StepParts, folder: Path, identity: Mapping[str, Any]) -> None:
    """Take starting weights from a step of any run, or a Hugging Face folder, with the same model and tokenizer.

    Raises:
        ConfigError: the model or the tokenizer differs, or the folder is damaged; on all ranks.
    """
    if is_hf_folder(folder):
        parts.world.together(lambda: load_hf_weights(parts.model, parts.config, parts.tokenizer, folder))
        return
    check_model_identity(load_documents(folder).train["identity"], identity, folder)
    load_tensors(folder, run_tensors(parts, optimizer=False), parts.world)


def rng_state(device: torch.device) -> dict[str, str]:
    """torch's generators as text."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return {name: base64.b64encode(bytes(state.tolist())).decode() for name, state in states.items()}


def set_rng_state(states: Mapping[str, str], device: torch.device) -> None:
    """Set what `rng_state` gave."""
    tensors = {
        name: torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8) for name, text in states.items()
    }
    torch.set_rng_state(tensors["cpu"])
    if device.type == "cuda" and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"], device)


def _excluded(parts: StepParts, documents: Documents, identity: Mapping[str, Any]) -> list[str]:
    """What checkpoint.exclude_from_loading leaves out of this step.

    That is done once: not again by the same command, unless the optimizer or the data have changed once more.
    """
    options, before = parts.config.checkpoint, honoured(documents.train)
    saved = {"optimizer": documents.train["identity"]["optimizer"], "data": documents.data["identity"]}
    current = {"optimizer": identity["optimizer"], "data": parts.dataloader.identity()}
    goes_on = options.load_step in (-1, before["load_step"])
    done = [
        name
        for name in options.exclude_from_loading
        if goes_on and name in before["exclude_from_loading"] and saved[name] == current[name]
    ]
    if done:
        logger.info(f"checkpoint.exclude_from_loading: {', '.join(done)} was left out at an earlier start, now loaded")
    return [name for name in options.exclude_from_loading if name not in done]


def _without(identity: Mapping[str, Any], excluded: list[str]) -> dict[str, Any]:
    return {key: value for key, value in identity.items() if key not in excluded}
