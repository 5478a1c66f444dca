"""The frozen weights under adapters: loaded, known again by a fingerprint, and found again on a resume."""

import functools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from titan_pt.components.checkpoint.checkpointer import CheckpointDocuments
from titan_pt.components.checkpoint.compatibility import check_compatible
from titan_pt.components.checkpoint.resume import load_weights
from titan_pt.components.checkpoint.run_state import model_tensors
from titan_pt.components.checkpoint.steps import find_initial
from titan_pt.config.errors import ConfigError
from titan_pt.distributed.init import copy_full, whole
from titan_pt.hf.model_source import open_model_source
from titan_pt.hf.transformer import LAYOUT
from titan_pt.hf.weights import check_args, check_ids, fill_run
from titan_pt.lora.fingerprint import agree, fingerprint
from titan_pt.lora.folders import fingerprint_of
from titan_pt.lora.stored import read_stored
from titan_pt.protocols.context import TrainContext

logger = logging.getLogger("titan_pt")


def start(context: TrainContext[Any], folder: Path, identity: Mapping[str, Any]) -> None:
    """Load the frozen weights, and the adapters of lora.path. A collective; raises as `load_weights` does."""
    load_base(context, folder, identity)
    if path := context.config.lora.path:
        context.world.together(lambda: _go_on_from(context, find_initial(path, "lora.path")))


def load_merged(context: TrainContext[Any], folder: Path) -> None:
    """Fill the model of a run with weights that have adapters in them, of a step of [lora] or a PEFT folder.

    Raises:
        ConfigError: they are of another model or tokenizer, or what they stand on is not found.
    """
    config, tokenizer = context.config, context.tokenizer
    source = open_model_source(
        str(folder), None, "checkpoint.initial_load_path", config.checkpoint.initial_load_weights
    )
    check_args(context.args.model_dump(), source.args.model_dump(), config, folder)
    check_ids(tokenizer, source.tokenizer, config, folder)
    fill_run(context, source.tensors, LAYOUT.vocabulary)
    if adapters := getattr(context.model, "adapters", None):
        adapters.base = {"fingerprint": fingerprint_of(source.tensors, tokenizer.vocab_size)}


def load_base(context: TrainContext[Any], folder: Path, identity: Mapping[str, Any]) -> None:
    """Load the frozen weights and take their fingerprint. A collective."""
    adapters: Any = context.model.adapters
    adapters.base, adapters.holds_base = {}, True
    try:
        load_weights(context, folder, identity)
        tensors = sorted(model_tensors(context.model).items())
    finally:
        adapters.holds_base = False
    found = adapters.base.get("fingerprint")  # of merged weights
    found = found or fingerprint(((name, whole(tensor)) for name, tensor in tensors), context.tokenizer.vocab_size)
    kind = context.config.checkpoint.initial_load_weights
    adapters.base = {"path": str(folder.resolve()), "weights": kind, "fingerprint": found}


def resume(
    context: TrainContext[Any], documents: CheckpointDocuments, folder: Path, identity: Mapping[str, Any]
) -> None:
    """Load the frozen weights that a step's adapters were trained on. A collective.

    Raises:
        ConfigError: the step has other adapters than the run, or these weights are gone or have changed.
    """
    saved, here = documents.train.get("adapters"), getattr(context.model, "adapters", None)
    if saved is None or here is None:
        found, wanted = ("whole weights", "true") if saved is None else ("adapters of [lora]", "false")
        raise ConfigError(
            f"{folder} holds {found}, and lora.enable = {wanted} here; set it back, or start another run from it: "
            f'another job.dump_folder, and checkpoint.initial_load_path = "{folder}"'
        )
    keys = {f"adapters.{part}": [f"lora.{part}"] for part in ("rank", "alpha", "target_modules")}
    there, now = ({k: v for k, v in part.items() if k != "base"} for part in (saved, here.document()))
    check_compatible({"adapters": there}, {"adapters": now}, folder, context.config, documents.config, keys=keys)
    if here.base and agree(here.base["fingerprint"], saved["base"]["fingerprint"]):
        return  # on a way back
    reasons = []
    for path in dict.fromkeys((saved["base"]["path"], context.config.checkpoint.initial_load_path)):
        try:
            initial = context.world.on_main(functools.partial(find_initial, path))
            load_base(context, initial, identity)
            if agree(here.base["fingerprint"], saved["base"]["fingerprint"]):
                return
            reasons.append(f"{initial}: its weights are others now")
        except ConfigError as error:
            reasons.append(str(error))
    raise ConfigError(
        f"{folder}: holds adapters alone, and the weights that they stand on are not found: {'; '.join(reasons)}; set "
        "checkpoint.initial_load_path to where they are, in any layout"
    )


def _go_on_from(context: TrainContext[Any], folder: Path) -> None:
    """Fill the adapters of a run from others of the same shape."""
    adapters: Any = context.model.adapters
    stored = read_stored(folder, context.model_spec.layout())
    told = f"lora.path: {folder}: "
    under, named = adapters.base["path"], str(stored.base["path"])
    if (known := stored.base.get("fingerprint")) and not agree(known, adapters.base["fingerprint"]):
        raise ConfigError(
            f"{told}its adapters are of the weights of {named}, and checkpoint.initial_load_path is {under}, which "
            f"holds others; set it to {named}, or leave lora.path out to train new adapters on {under}"
        )
    if not known and Path(named).name != Path(under).name:  # adapter_config.json says no more
        logger.warning(f"{told}its adapters are of {named!r}, and go on here on the weights of {under}")
    fix = "or merge it into the weights to train new ones: checkpoint.initial_load_path = that folder"
    if odd := sorted(adapters.modules.keys() ^ stored.pairs.keys()):
        where = "here" if odd[0] in adapters.modules else "there"
        raise ConfigError(f"{told}{odd[0]} has an adapter {where} alone: set lora.target_modules, {fix}")
    for name, (a, b) in stored.pairs.items():
        module, rank, scaling = adapters.modules[name], a.shape[0], stored.scaling[name]
        if (rank, scaling) != (module.lora_A.out_features, module.scaling):
            raise ConfigError(
                f"{told}{name} is scaled otherwise: set lora.rank = {rank}, lora.alpha = {rank * scaling:g}, {fix}"
            )
        if (b.shape[0], a.shape[1]) != (module.out_features, module.in_features):
            raise ConfigError(f"{told}{name} is {b.shape[0]} x {a.shape[1]}, as of another model")
        copy_full(module.lora_A.weight, a)
        copy_full(module.lora_B.weight, b)
