"""Models with adapters on disk, as the tools open them: merged into the weights that they stand on; PEFT folders."""

import logging
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from titan_pt.components.checkpoint.steps import is_hf_folder
from titan_pt.config.errors import ConfigError, shown
from titan_pt.config.names import hub_download
from titan_pt.hf.model_source import ModelSource, open_model_source
from titan_pt.hf.tensor_readers import ADAPTER, TensorInfo, TensorReader
from titan_pt.hf.tokenizer_files import write_tokenizer
from titan_pt.lora.adapters import with_product
from titan_pt.lora.fingerprint import agree, fingerprint
from titan_pt.lora.stored import WEIGHTS, StoredAdapters, read_stored
from titan_pt.run.files import sync_folder, write_json

logger = logging.getLogger("titan_pt")


@dataclass(frozen=True)
class MergedTensors:
    """A `TensorReader` of weights with adapters in them, as many rows of each as the model has."""

    base: TensorReader
    stored: StoredAdapters
    infos: Mapping[str, TensorInfo]

    def read(self, name: str) -> torch.Tensor:
        weight, layer = self.read_base(name), name.removesuffix(".weight")
        if layer not in self.stored.pairs:
            return weight
        a, b = (part.float() for part in self.stored.pairs[layer])
        return with_product(weight, a, b, self.stored.scaling[layer])

    def read_base(self, name: str) -> torch.Tensor:
        """The weight under the adapter."""
        weight, rows = self.base.read(name), self.infos[name].shape[0]
        return F.pad(weight, (0, 0, 0, rows - len(weight))) if rows > len(weight) else weight[:rows]

    def place(self, name: str) -> str:
        return self.base.place(name)


def merged_step(
    folder: Path, initial_path: str | None, tokenizer: str | None, weights: str, shapes: Mapping[str, tuple[int, ...]]
) -> MergedTensors:
    """The weights of a step of [lora] with its adapters in them.

    Args:
        initial_path: checkpoint.initial_load_path of its run.
        shapes: of the model's parameters.

    Raises:
        ConfigError: the weights under the adapters are gone, or have changed.
    """
    stored = read_stored(folder, None, weights)
    reasons = []
    for path in dict.fromkeys((stored.base["path"], initial_path)):
        try:
            base = open_model_source(str(path), tokenizer, "its weights under the adapters", stored.base["weights"])
        except ConfigError as error:
            reasons.append(str(error))
            continue
        infos = {
            name: TensorInfo(shapes.get(name, info.shape), info.dtype) for name, info in base.tensors.infos.items()
        }
        merged = MergedTensors(base.tensors, stored, infos)
        found = fingerprint(((name, merged.read_base(name)) for name in sorted(infos)), base.tokenizer.vocab_size)
        if agree(found, stored.base["fingerprint"]):
            return merged
        reasons.append(f"{path}: its weights are others now")
    raise ConfigError(f"{folder}: holds adapters alone, and what they stand on is not found: {'; '.join(reasons)}")


def open_peft(folder: Path, tokenizer: str | None) -> ModelSource:
    """The model of a PEFT folder, merged.

    Raises:
        ConfigError: its base is not on this machine, or is another model.
    """
    stored = read_stored(folder, None)
    named = stored.base["path"]
    where = f"{folder / ADAPTER}: base_model_name_or_path = {shown(named)}"
    places = [Path(str(named)), folder / str(named)]
    place = next((place for place in places if named and place.is_dir()), None)
    if place is None:
        how = hub_download(str(named)) or "; set it to the folder of the model that the adapters stand on"
        raise ConfigError(f"{where}: no such folder{how}")
    base = open_model_source(str(place), tokenizer, where)
    for name, (a, b) in stored.pairs.items():
        info = base.tensors.infos.get(f"{name}.weight")
        if info is None or info.shape != (b.shape[0], a.shape[1]):
            raise ConfigError(f"{where}: has no {name} of {b.shape[0]} x {a.shape[1]}, which an adapter is for")
    facts = {"Weights": f"{place.resolve().name} with the adapters of {folder.resolve().name}"}
    return replace(base, folder=folder, tensors=MergedTensors(base.tensors, stored, base.tensors.infos), facts=facts)


def write_peft(source: ModelSource, target: Path, dtype: torch.dtype | None) -> None:
    """Write the adapters of a step as a PEFT folder, with its tokenizer.

    Raises:
        ConfigError: the model has none, or is a PEFT folder.
        OSError: it cannot be written; nothing is left.
    """
    tensors = source.tensors
    assert isinstance(tensors, MergedTensors)
    stored, layout = tensors.stored, source.to_export().layout
    if (source.folder / ADAPTER).is_file():
        raise ConfigError(f"{source.folder}: is a PEFT folder already; --merge writes the whole model")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": stored.base["path"],
        "r": stored.rank,
        "lora_alpha": stored.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": _targets(tensors, [layout.to_name(name) for name in stored.pairs]),
    }
    named = {
        f"base_model.model.{layout.to_name(name)}.lora_{part}.weight": tensor.to(dtype or tensor.dtype).contiguous()
        for name, pair in stored.pairs.items()
        for part, tensor in zip("AB", pair, strict=True)
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.tmp-{uuid.uuid4().hex[:8]}")
    try:
        temporary.mkdir()
        save_file(named, temporary / WEIGHTS, metadata={"format": "pt"})
        (temporary / WEIGHTS).chmod(temporary.stat().st_mode & 0o666)
        write_json(temporary / ADAPTER, config, indent=2)
        write_tokenizer(source.tokenizer, temporary, source.args.max_seq_len)
        sync_folder(temporary)
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if not is_hf_folder(Path(stored.base["path"])):
        logger.warning(
            f"{stored.base['path']} is a step of titan_pt: for peft export it too, and write its place as "
            f"base_model_name_or_path in {target / ADAPTER}"
        )


def _targets(tensors: MergedTensors, names: list[str]) -> list[str]:
    """The ends of the names where these mean the adapted layers alone, else the whole names."""
    ends = {name.rpartition(".")[2] for name in names}
    meant = [n for n in tensors.infos if n.removesuffix(".weight").rpartition(".")[2] in ends]
    return sorted(ends if len(meant) == len(names) else names)
