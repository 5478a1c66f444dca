"""Restores the state of a run from a step: whole, to go on, or its weights alone, to start another run from them.

Imported where there is a checkpoint to load; `run_state` collects what is restored here.
"""

import base64
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from titan_pt.components.checkpoint.checkpointer import CheckpointDocuments, Checkpointer
from titan_pt.components.checkpoint.compatibility import check_compatible, check_model_compatible
from titan_pt.components.checkpoint.finite import first_not_finite
from titan_pt.components.checkpoint.mismatch import changed_keys
from titan_pt.components.checkpoint.reader import load_documents, load_tensors
from titan_pt.components.checkpoint.run_state import of_optimizer, run_tensors
from titan_pt.components.checkpoint.steps import check_has_averages, honoured, is_adapter_folder, is_hf_folder
from titan_pt.config.errors import ConfigError
from titan_pt.protocols.context import StatefulStep, Step, TrainContext, TrainState
from titan_pt.protocols.registry import import_attribute

logger = logging.getLogger("titan_pt")

_OF_THE_RATE = (
    *("optimizer.lr", "lr_scheduler", "training.steps", "training.tokens", "training.max_hours", "sft.epochs"),
    *("training.global_batch_size", "training.global_batch_tokens", "training.local_batch_size", "training.seq_len"),
)
"""Keys that decide the learning rate of a step."""
_OF_THE_LENGTH = ("training.steps", "training.tokens", "sft.epochs", "training.global_batch", "training.seq_len")


@dataclass(frozen=True)
class Resumed:
    """The trainer's part of a checkpoint."""

    folder: Path
    state: TrainState
    deadline: dict[str, Any] | None
    """State of the step plan of a run with training.max_hours."""
    rate: float | None
    """Main learning rate of its last step; None in steps of versions that did not save it."""
    lr_ratios: list[float] | None
    """Each group's rate over the main one; None in steps of versions that did not save it."""
    config_toml: str
    """The saved config."""
    unwritten_row: dict[str, Any] | None
    """Log row that earlier releases kept in a checkpoint when a signal ended its validation."""


class _NotFiniteStep(Exception):
    """The first tensor of a step that is not finite, on all ranks."""


def load_newest(
    context: TrainContext,
    step: Step,
    checkpointer: Checkpointer,
    found: Path,
    identity: Mapping[str, Any],
    state: TrainState,
) -> Resumed:
    """Restore a step as `restore_newest` does, and set the state of the run, which its loop has, to the step's."""
    resumed = restore_newest(context, step, checkpointer, found, identity)
    vars(state).update(vars(resumed.state))
    checkpointer.last_step = state.step
    if context.spikes:
        context.spikes.load_state_dict(state.guard.get("spikes", {}))
    return resumed


def restore_newest(
    context: TrainContext, step: Step, checkpointer: Checkpointer, found: Path, identity: Mapping[str, Any]
) -> Resumed:
    """Restore the step that was found or, where its tensors are not finite, the newest one that is good.

    Steps with such tensors are no longer saved; those of earlier releases get another name here, which nothing opens.

    Raises:
        ConfigError: it is of another run, or the data read differently now, or no step is good; on all ranks.
    """
    options = context.config.checkpoint
    while True:
        try:
            return load_run(context, step, found, identity)
        except _NotFiniteStep as error:
            why = f"{found}: {error} is not finite"
        if options.load_only or found.name == f"step-{options.load_step}":
            raise ConfigError(f"{why}; set checkpoint.load_step to another step")
        if context.world.is_main:
            logger.warning(f"{why}; it is passed over, and named {found.name}.not-finite")
            found.rename(found.with_name(f"{found.name}.not-finite"))
        other = checkpointer.find()
        if other is None:
            raise ConfigError(f"{why}, and no other step is there; move the folder away to start anew")
        found = other


def load_run(context: TrainContext, step: Step, folder: Path, identity: Mapping[str, Any]) -> Resumed:
    """Restore a step into the parts of a run, except what checkpoint.exclude_from_loading names.

    Raises:
        ConfigError: it is of another run, or the data read differently now; on all ranks.
        _NotFiniteStep: of its tensors one is not.
    """
    world, documents = context.world, load_documents(folder)
    excluded = _excluded(context, documents, identity)
    saved, current = _without(documents.train["identity"], excluded), _without(identity, excluded)
    check_compatible(saved, current, folder, context.config, documents.config)
    if "adapters" in documents.train or hasattr(context.model, "adapters"):
        import_attribute("titan_pt.lora.base:resume")(context, documents, folder, identity)
    if "data" not in excluded:
        _check_data(context, documents, folder)
    if isinstance(step, StatefulStep) and hasattr(step, "check_state"):
        step.check_state(documents.train["step"], folder)
    tensors = run_tensors(context, step, optimizer=False)
    if context.ema and "ema" not in documents.train:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("ema.")}
        logger.warning(f"{folder}: its run had no training.ema_decay; the average begins here")
    moments: dict[str, torch.Tensor] = {}
    document = documents.train.get("optimizer")
    if "optimizer" not in excluded:
        moments = context.optimizer_state.targets(document, folder)
    loaded = tensors | of_optimizer(moments)
    load_tensors(folder, loaded, world)
    bad = world.gather(first_not_finite(loaded, own_optimizer=document is not None))
    if any(bad):
        raise _NotFiniteStep(next(filter(None, bad)))
    if "optimizer" not in excluded:
        context.optimizer_state.load(document, moments)
    if "data" not in excluded:
        streams = documents.data["streams"]
        if context.dataloader.digest(streams) != documents.data["token_hash"]:
            raise ConfigError(f"{folder}: the states of its data streams do not belong to its token hash; restore it")
        world.together(lambda: context.dataloader.load_state_dict(streams))
    if isinstance(step, StatefulStep):
        step.load_state_dict(documents.train["step"])
    if context.ema:
        context.ema.load_state_dict(documents.train.get("ema", {}))
    states = documents.train["rng"]
    if len(states) == world.size:
        set_rng_state(states[world.rank], world.device)
    train = documents.train
    state = TrainState(**train["state"])
    if "data" in excluded:
        state.guard.pop("jumps", None)  # they are of the data that are left out
    return Resumed(
        folder=folder,
        state=state,
        deadline=train.get("deadline"),
        rate=train.get("rate"),
        lr_ratios=train.get("lr_ratios"),
        config_toml=documents.config,
        unwritten_row=train.get("owed_row"),
    )


def _check_data(context: TrainContext, documents: CheckpointDocuments, folder: Path) -> None:
    """Raise a ConfigError unless a checkpoint's data are the run's, by settings and by what the files hold."""
    loader = context.dataloader
    before, now = documents.data["identity"], loader.identity()
    others: list[str] = []
    if hasattr(loader, "source_differences"):
        others, settings = loader.source_differences(documents.data)
        if settings:
            others += changed_keys(documents.config, context.config, ["data.sources"]) or settings
        before, now = ({k: v for k, v in part.items() if k != "sources"} for part in (before, now))
    now = _of_that_time(loader, now, before)
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


def start_from(context: TrainContext, path: str, identity: Mapping[str, Any]) -> None:
    """Take starting weights from what a path names, and say so. A collective; raises as `load_weights` does."""
    from titan_pt.components.checkpoint.steps import find_initial

    initial = context.world.on_main(lambda: find_initial(path))
    load_weights(context, initial, identity)
    logger.info(f"Starting weights from {initial}")


def load_weights(context: TrainContext, folder: Path, identity: Mapping[str, Any]) -> None:
    """Load starting weights from a step of any run or a Hugging Face folder, of the same model and tokenizer.

    Raises:
        ConfigError: the model or the tokenizer differs, or the folder is damaged; on all ranks.
    """
    adapters: Any = getattr(context.model, "adapters", None)
    if adapters and not adapters.holds_base:
        import_attribute("titan_pt.lora.base:start")(context, folder, identity)
        return
    averaged = context.config.checkpoint.initial_load_weights == "ema"
    if averaged:
        check_has_averages(folder, 'checkpoint.initial_load_weights = "ema"')
    documents = None if is_adapter_folder(folder) or is_hf_folder(folder) else load_documents(folder)
    if documents is None or "adapters" in documents.train:
        plain = documents is None and not is_adapter_folder(folder)
        load = import_attribute("titan_pt.hf.weights:load_hf_weights" if plain else "titan_pt.lora.base:load_merged")
        context.world.together(lambda: load(context, folder))
        return
    check_model_compatible(documents.train["identity"], identity, folder, context.config, documents.config)
    tensors = run_tensors(context, optimizer=False)
    if averaged:
        tensors = {"ema." + name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    load_tensors(folder, tensors, context.world)


def warn_of_another_rate(resumed: Resumed, context: TrainContext, total_steps: int, sized_by: str) -> None:
    """Warn where the schedule leaves the rate that the last step had, with the keys that made it so.

    Args:
        sized_by: the key that says how long the run is.
    """
    step, rate = resumed.state.step, resumed.rate
    if rate is None or step >= total_steps or not context.world.is_main:
        return
    now, after = context.schedule(step), context.schedule(step + 1)
    _warn_of_other_ratios(resumed.lr_ratios, context, step, rate, after)
    if math.isclose(now, rate, rel_tol=1e-9):
        return
    changed = changed_keys(resumed.config_toml, context.config, _OF_THE_RATE)
    if resumed.deadline and not changed:  # the end of the decay moves with the clock
        return
    why = "; ".join(changed) or "the schedule is another one"
    if any(key.startswith(_OF_THE_LENGTH) for key in changed):
        why += (
            f"; the schedule is planned again to the new end, step {total_steps:,} by {sized_by}: at step {step:,} it "
            f"was {rate:.4g} and is {now:.4g}"
        )
    logger.warning(f"The learning rate {_change(rate, after, step)}: {why}")


def _warn_of_other_ratios(
    saved: list[float] | None, context: TrainContext, step: int, rate: float, after: float
) -> None:
    """Warn of each parameter group whose own rate is another multiple of the main one than in the checkpoint."""
    for number, (group, there) in enumerate(zip(context.optimizer.param_groups, saved or [], strict=False), 1):
        here = group.get("lr_ratio", 1.0)
        # A new optimizer.lr changes the multiple of a rate that stays; the schedule is told apart.
        if math.isclose(here, there, rel_tol=1e-9) or math.isclose(here * after, there * rate, rel_tol=1e-9):
            continue
        logger.warning(
            f"The learning rate lr/{group.get('name', number)} {_change(there * rate, here * after, step)}: "
            f"the group's own rate is {there:.4g} times optimizer.lr there and {here:.4g} times here"
        )


def _change(before: float, after: float, step: int) -> str:
    if math.isclose(before, after, rel_tol=1e-9):
        return f"stays at {after:.4g} at step {step + 1:,}"
    rises = "rises" if after > before else "falls"
    return f"{rises} from {before:.4g} at step {step:,} to {after:.4g} at step {step + 1:,}"


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
    same = {
        "optimizer": lambda: documents.train["identity"]["optimizer"] == identity["optimizer"],
        "data": lambda: has_data_of(context.dataloader, documents.data),
    }
    goes_on = options.load_step in (-1, before["load_step"])
    done = [
        name
        for name in options.exclude_from_loading
        if goes_on and name in before["exclude_from_loading"] and same[name]()
    ]
    if done:
        logger.info(f"checkpoint.exclude_from_loading: {', '.join(done)} was left out at an earlier start, now loaded")
    return [name for name in options.exclude_from_loading if name not in done]


def has_data_of(loader: Any, data: Mapping[str, Any]) -> bool:
    """Whether a loader has the data of a checkpoint, to the file."""
    if _of_that_time(loader, loader.identity(), data["identity"]) != data["identity"]:
        return False
    return not (hasattr(loader, "source_differences") and any(loader.source_differences(data)))


def _of_that_time(loader: Any, now: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """A loader's identity without the parts that the release of a checkpoint did not have."""
    later = getattr(loader, "later_identity", ())
    return {name: value for name, value in now.items() if name in before or name not in later}


def _without(identity: Mapping[str, Any], excluded: list[str]) -> dict[str, Any]:
    return {key: value for key, value in identity.items() if key not in excluded}
