"""The state of a run, collected from its parts for a checkpoint; `resume` restores it."""

import base64
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from titan_pt.components.checkpoint.checkpointer import CheckpointDocuments, step_bytes
from titan_pt.components.tokenizer import Tokenizer
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.distributed.init import parameter_name
from titan_pt.protocols.context import StatefulStep, Step, TrainContext, TrainState
from titan_pt.version import stamped


def run_identity(config: JobConfig, args: Any, tokenizer: Tokenizer) -> dict[str, Any]:
    """The identity of a run, saved with every checkpoint: trainer, model, tokenizer and optimizer."""
    return {
        "trainer": config.job.trainer,
        "model": {"name": config.model.name, **args.model_dump()},
        "tokenizer": {"fingerprint": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size},
        "optimizer": config.optimizer.name,
    }


def run_tensors(context: TrainContext, step: Step | None = None, *, optimizer: bool = True) -> dict[str, torch.Tensor]:
    """Tensors of model, optimizer, averages, step by checkpoint name, sharded as they are; no step: the first two."""
    # The model first: reading its state shards it again after a validation, and the optimizer's names need that.
    tensors = {f"model.{name}": tensor for name, tensor in model_tensors(context.model).items()}
    if optimizer:
        tensors |= of_optimizer(context.optimizer_state.tensors())
    if step and context.ema:
        tensors |= {f"ema.{name}": tensor for name, tensor in context.ema.tensors().items()}
    if isinstance(step, StatefulStep):
        tensors |= {f"step.{name}": tensor for name, tensor in step.tensors().items()}
    return tensors


def expected_bytes(context: TrainContext, step: Step) -> int:
    """Size of a step of this run; before the first one AdamW's moments are added, and nothing for other optimizers."""
    optimizer = context.optimizer
    size = step_bytes(run_tensors(context, step, optimizer=bool(optimizer.state)))
    fresh = isinstance(optimizer, torch.optim.AdamW) and not optimizer.state
    return size + 2 * step_bytes(model_tensors(context.model)) if fresh else size


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
        "lr_ratios": [group.get("lr_ratio", 1.0) for group in context.optimizer.param_groups],
        "identity": dict(identity),
        "world_size": world.size,
        "rng": world.gather(rng_state(world.device)),
        "step": step.state_dict() if isinstance(step, StatefulStep) else {},
        **({} if (optimizer := context.optimizer_state.document()) is None else {"optimizer": optimizer}),
        **({"ema": context.ema.state_dict()} if context.ema else {}),
        **({"adapters": adapters.document()} if (adapters := getattr(context.model, "adapters", None)) else {}),
        "honoured": context.config.checkpoint.model_dump(include={"load_step", "exclude_from_loading"}),
    }
    data = {"identity": loader.identity(), "token_hash": loader.digest(streams), "streams": streams}
    if contents := data_contents(loader):
        data["contents"] = contents
    return CheckpointDocuments(train, data, stamped(context.config.to_toml()))


def data_contents(loader: Any) -> dict[str, Any]:
    """What the files of a loader's data hold, where it reads any."""
    found: dict[str, Any] = loader.contents() if hasattr(loader, "contents") else {}
    return found


def rng_state(device: torch.device) -> dict[str, str]:
    """States of torch's random generators by device type, in base64."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return {name: base64.b64encode(bytes(state.tolist())).decode() for name, state in states.items()}


def of_optimizer(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"optimizer.{name}": tensor for name, tensor in tensors.items()}
