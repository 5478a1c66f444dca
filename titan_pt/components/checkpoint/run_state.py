"""The state of a run: collected from its parts for a checkpoint, and restored into them."""

import base64
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from titan_pt.components.checkpoint.checkpointer import CheckpointDocuments, load_documents, load_tensors
from titan_pt.components.checkpoint.compatibility import check_compatible, check_model_compatible
from titan_pt.components.checkpoint.steps import honoured, is_hf_folder
from titan_pt.config.errors import ConfigError
from titan_pt.distributed.init import parameter_name
from titan_pt.protocols.context import StatefulStep, Step, TrainContext, TrainState
from titan_pt.protocols.registry import import_attribute

logger = logging.getLogger("titan_pt")


@dataclass(frozen=True)
class Resumed:
    """The trainer's part of a checkpoint."""

    state: TrainState
    deadline: dict[str, Any] | None
    """State of the step plan of a run with training.max_hours."""
    rate: float | None
    """Main learning rate of its last step; None in steps of versions that did not save it."""
    config_toml: str
    """The saved config."""
    unwritten_row: dict[str, Any] | None
    """Log row that earlier releases kept in a checkpoint when a signal ended its validation."""


def run_tensors(context: TrainContext, step: Step | None = None, *, optimizer: bool = True) -> dict[str, torch.Tensor]:
    """Tensors of model, optimizer and step function by checkpoint name, sharded as they are."""
    # The model first: reading its state shards it again after a validation, and the optimizer's names need that.
    tensors = {f"model.{name}": tensor for name, tensor in model_tensors(context.model).items()}
    if optimizer:
        tensors |= _of_optimizer(context.optimizer_state.tensors())
    if isinstance(step, StatefulStep):
        tensors |= {f"step.{name}": tensor for name, tensor in step.tensors().items()}
    return tensors


def model_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers by checkpoint name, sharded where the model is; a tied weight once."""
    tensors: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[parameter_name(name)] = tensor.detach()
    return tensors


def run_documents(
    context: TrainContext,
    step: Step,
    identity: Mapping[str, Any],
    state: TrainState,
    deadline: dict[str, Any] | None,
) -> CheckpointDocuments:
    """Collect from all ranks everything in the state of a run that is not a tensor.

    Args:
        deadline: state of the step plan.
    """
    world, loader = context.world, context.dataloader
    streams: dict[str, Any] = {}
    for part in world.gather(loader.state_dict()):
        streams |= part
    train = {
        "state": asdict(state),
        "deadline": deadline,
        "rate": context.schedule(state.step),
        "identity": dict(identity),
        "world_size": world.size,
        "rng": world.gather(rng_state(world.device)),
        "step": step.state_dict() if isinstance(step, StatefulStep) else {},
        **({} if (optimizer := context.optimizer_state.document()) is None else {"optimizer": optimizer}),
        "honoured": context.config.checkpoint.model_dump(include={"load_step", "exclude_from_loading"}),
    }
    data = {"identity": loader.identity(), "token_hash": loader.digest(streams), "streams": streams}
    if contents := _contents(loader):
        data["contents"] = contents
    return CheckpointDocuments(train, data, context.config.to_toml())


def load_run(context: TrainContext, step: Step, folder: Path, identity: Mapping[str, Any]) -> Resumed:
    """Restore a step into the parts of a run, except what checkpoint.exclude_from_loading names.

    Raises:
        ConfigError: it is of another run, or the data read differently now; on all ranks.
    """
    world, documents = context.world, load_documents(folder)
    excluded = _excluded(context, documents, identity)
    saved, current = _without(documents.train["identity"], excluded), _without(identity, excluded)
    check_compatible(saved, current, folder, context.config, documents.config)
    if "data" not in excluded:
        _check_data(context, documents, folder)
    if isinstance(step, StatefulStep) and hasattr(step, "check_state"):
        step.check_state(documents.train["step"], folder)
    tensors = run_tensors(context, step, optimizer=False)
    moments: dict[str, torch.Tensor] = {}
    document = documents.train.get("optimizer")
    if "optimizer" not in excluded:
        moments = context.optimizer_state.targets(document, folder)
    load_tensors(folder, tensors | _of_optimizer(moments), world)
    if "optimizer" not in excluded:
        context.optimizer_state.load(document, moments)
    if "data" not in excluded:
        streams = documents.data["streams"]
        if context.dataloader.digest(streams) != documents.data["token_hash"]:
            raise ConfigError(f"{folder}: the states of its data streams do not belong to its token hash; restore it")
        world.together(lambda: context.dataloader.load_state_dict(streams))
    if isinstance(step, StatefulStep):
        step.load_state_dict(documents.train["step"])
    states = documents.train["rng"]
    if len(states) == world.size:
        set_rng_state(states[world.rank], world.device)
    train = documents.train
    state = TrainState(**train["state"])
    return Resumed(state, train.get("deadline"), train.get("rate"), documents.config, train.get("owed_row"))


def _check_data(context: TrainContext, documents: CheckpointDocuments, folder: Path) -> None:
    """Raise a ConfigError unless a checkpoint's data are the run's, by settings and by what the files hold."""
    loader = context.dataloader
    before, now = documents.data["identity"], loader.identity()
    others: list[str] = []
    if hasattr(loader, "source_differences"):
        others, settings = loader.source_differences(documents.data)
        if settings:
            from titan_pt.components.checkpoint.mismatch import changed_keys

            others += changed_keys(documents.config, context.config, ["data.sources"]) or settings
        before, now = ({k: v for k, v in part.items() if k != "sources"} for part in (before, now))
    check_compatible(
        {"data": before},
        {"data": now},
        folder,
        context.config,
        documents.config,
        others=others,
        fix="set the config back, restore the files",
        keys={f"data.{name}": keys for name, keys in getattr(loader, "identity_keys", {}).items()},
    )


def _contents(loader: Any) -> dict[str, Any]:
    """What the files of a loader's data hold, where it reads any."""
    found: dict[str, Any] = loader.contents() if hasattr(loader, "contents") else {}
    return found


def load_weights(context: TrainContext, folder: Path, identity: Mapping[str, Any]) -> None:
    """Load starting weights from a step of any run or a Hugging Face folder, of the same model and tokenizer.

    Raises:
        ConfigError: the model or the tokenizer differs, or the folder is damaged; on all ranks.
    """
    if is_hf_folder(folder):
        load_hf_weights = import_attribute("titan_pt.hf.weights:load_hf_weights")
        context.world.together(lambda: load_hf_weights(context, folder))
        return
    documents = load_documents(folder)
    check_model_compatible(documents.train["identity"], identity, folder, context.config, documents.config)
    load_tensors(folder, run_tensors(context, optimizer=False), context.world)


def rng_state(device: torch.device) -> dict[str, str]:
    """States of torch's random generators by device type, in base64."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return {name: base64.b64encode(bytes(state.tolist())).decode() for name, state in states.items()}


def set_rng_state(states: Mapping[str, str], device: torch.device) -> None:
    """Restore torch's random generators from the value of `rng_state`."""
    tensors = {
        name: torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8) for name, text in states.items()
    }
    torch.set_rng_state(tensors["cpu"])
    if device.type == "cuda" and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"], device)


def _excluded(context: TrainContext, documents: CheckpointDocuments, identity: Mapping[str, Any]) -> list[str]:
    """Parts of this step that checkpoint.exclude_from_loading leaves out.

    A part is left out once: not again by the same command, unless the optimizer or the data have changed once more.
    """
    options, before = context.config.checkpoint, honoured(documents.train)
    data, loader = documents.data, context.dataloader
    contents = _contents(loader) if "contents" in data else None
    saved = {"optimizer": documents.train["identity"]["optimizer"], "data": (data["identity"], data.get("contents"))}
    current = {"optimizer": identity["optimizer"], "data": (loader.identity(), contents)}
    goes_on = options.load_step in (-1, before["load_step"])
    done = [
        name
        for name in options.exclude_from_loading
        if goes_on and name in before["exclude_from_loading"] and saved[name] == current[name]
    ]
    if done:
        logger.info(f"checkpoint.exclude_from_loading: {', '.join(done)} was left out at an earlier start, now loaded")
    return [name for name in options.exclude_from_loading if name not in done]


def _of_optimizer(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"optimizer.{name}": tensor for name, tensor in tensors.items()}


def _without(identity: Mapping[str, Any], excluded: list[str]) -> dict[str, Any]:
    return {key: value for key, value in identity.items() if key not in excluded}
