"""Adapters on disk, of a run's step or in a PEFT folder."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from titan_pt.components.checkpoint.reader import load_documents
from titan_pt.config.errors import ConfigError, shown
from titan_pt.hf.tensor_readers import ADAPTER, CheckpointTensors, unwrapped
from titan_pt.hf.transformer import LAYOUT, read_object
from titan_pt.protocols.model_spec import HuggingFaceLayout

WEIGHTS = "adapter_model.safetensors"
FACTS = "titan_pt.json"
"""Beside an exported adapter, what PEFT's own file has no key for: "weights", "fingerprint", "knows_chat"."""
# Keys of adapter_config.json that change nothing of adapters that are trained: what they say is in the tensors.
_INERT = """auto_mapping base_model_name_or_path eva_config exclude_modules inference_mode layers_pattern lora_dropout
layers_to_transform megatron_core peft_type peft_version qalora_group_size revision target_modules task_type""".split()  # noqa: SIM905
_READ = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "init_lora_weights", "bias")
# Of other values of init_lora_weights the weights under the adapters are not those of the base.
_PLAIN_INIT = (None, True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class StoredAdapters:
    """A and B of each adapted layer, whole."""

    pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    """(A, B) by the layer's name in the model."""
    scaling: Mapping[str, float]
    base: Mapping[str, Any]
    """Of the weights under them: "path", of a run's also "weights" and "fingerprint", in a PEFT folder too."""
    rank: int
    alpha: float


def read_stored(folder: Path, layout: HuggingFaceLayout[Any] | None, weights: str = "trained") -> StoredAdapters:
    """Read the adapters of a step or of a PEFT folder.

    Args:
        weights: of a step the "trained" ones, or "ema" for their average.

    Raises:
        ConfigError: there are none, or they are more than A and B of linear layers; names file and key.
    """
    if (folder / ADAPTER).is_file():
        return _read_peft(folder, layout or LAYOUT)
    train = load_documents(folder).train if (folder / "train.json").is_file() else {}
    if "adapters" not in train:
        raise ConfigError(f"{folder}: holds no adapters; give a run of [lora] or a PEFT folder")
    saved, reader = train["adapters"], CheckpointTensors(folder, "ema" if weights == "ema" else "model")
    pairs = _paired(folder, {name: reader.read(name) for name in reader.infos})
    scaling = dict.fromkeys(pairs, saved["alpha"] / saved["rank"])
    return StoredAdapters(pairs, scaling, saved["base"], saved["rank"], saved["alpha"])


def _read_peft(folder: Path, layout: HuggingFaceLayout[Any]) -> StoredAdapters:
    file, config = folder / ADAPTER, read_object(folder / ADAPTER)
    if config.get("peft_type") != "LORA":
        raise ConfigError(f"{file}: peft_type = {shown(config.get('peft_type'))}: supported is LORA")
    known = {*_INERT, *_READ}
    beyond = {key: value for key, value in config.items() if key not in known and value}
    if config.get("bias", "none") != "none":
        beyond["bias"] = config["bias"]
    if config.get("init_lora_weights", True) not in _PLAIN_INIT:
        beyond["init_lora_weights"] = config["init_lora_weights"]
    if beyond:
        told = ", ".join(f"{key} = {shown(value)}" for key, value in beyond.items())
        raise ConfigError(f"{file}: {told}: not supported; merge it with peft (merge_and_unload) and give that folder")
    try:
        held = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{folder / WEIGHTS}: cannot be read: {error}; save the adapter as safetensors") from None
    pairs = _paired(folder, {layout.from_name(unwrapped(name)) or name: tensor for name, tensor in held.items()})
    rank, alpha = config.get("r", 8), config.get("lora_alpha", 8)
    try:
        scaling = {
            name: float(_matching(config.get("alpha_pattern") or {}, layout.to_name(name), alpha))
            / (math.sqrt(a.shape[0]) if config.get("use_rslora") else a.shape[0])
            for name, (a, _) in pairs.items()
        }
    except (TypeError, ValueError, AttributeError, re.error) as error:
        raise ConfigError(f"{file}: lora_alpha, alpha_pattern: cannot be read: {error}") from None
    facts = read_object(folder / FACTS) if (folder / FACTS).is_file() else {}
    base = {**facts, "path": config.get("base_model_name_or_path")}
    return StoredAdapters(pairs, scaling, base, rank, alpha)


def _matching(pattern: Mapping[str, Any], name: str, default: Any) -> Any:
    """The value for a layer: of the first key that the end of its name matches, as in PEFT."""
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", name)), default)


def _paired(folder: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    names = {name.removesuffix(".weight")[: -len(".lora_A")] for name in tensors}
    wanted = {f"{name}.lora_{part}.weight" for name in names for part in "AB"}
    if odd := sorted(wanted ^ set(tensors)):
        there = "no adapter of a linear layer" if odd[0] in tensors else "missing"
        raise ConfigError(f"{folder}: {odd[0]}: {there}; supported are pairs of lora_A.weight and lora_B.weight")
    pairs = {n: (tensors[f"{n}.lora_A.weight"], tensors[f"{n}.lora_B.weight"]) for n in sorted(names)}
    for name, (a, b) in pairs.items():
        if a.ndim != 2 or b.ndim != 2 or not a.shape[0] == b.shape[1] > 0:
            raise ConfigError(f"{folder}: {name}: its A and B are no matrices of one rank above 0")
        if not (a.isfinite().all() and b.isfinite().all()):
            raise ConfigError(f"{folder}: {name}: its A and B are not finite")
    return pairs
