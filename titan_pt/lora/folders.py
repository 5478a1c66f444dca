"""Models with adapters on disk, as the tools open them: merged into the weights that they stand on; PEFT folders."""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from titan_pt.components.checkpoint.steps import is_adapter_folder, is_hf_folder
from titan_pt.components.tokenizer import build_tokenizer
from titan_pt.config.errors import ConfigError, shown
from titan_pt.config.names import hub_download
from titan_pt.config.schema.job_config import TokenizerSection
from titan_pt.hf.chat import knows_chat
from titan_pt.hf.export import replacement, settle
from titan_pt.hf.model_source import ModelSource, open_model_source
from titan_pt.hf.tensor_readers import ADAPTER, TensorInfo, TensorReader
from titan_pt.hf.tokenizer_files import write_tokenizer
from titan_pt.hf.weights import other_ids
from titan_pt.lora.adapters import with_product
from titan_pt.lora.fingerprint import agree, fingerprint
from titan_pt.lora.stored import FACTS, WEIGHTS, StoredAdapters, read_stored
from titan_pt.run.files import write_json
from titan_pt.run.paths import escape_path

logger = logging.getLogger("titan_pt")


@dataclass(frozen=True)
class MergedTensors:
    """A `TensorReader` of weights with adapters in them, as many rows of each as the model has."""

    base: TensorReader
    stored: StoredAdapters
    infos: Mapping[str, TensorInfo]

    def read(self, name: str) -> torch.Tensor:
        weight, rows, layer = self.base.read(name), self.infos[name].shape[0], name.removesuffix(".weight")
        weight = F.pad(weight, (0, 0, 0, rows - len(weight))) if rows > len(weight) else weight[:rows]
        if layer not in self.stored.pairs:
            return weight
        a, b = (part.float() for part in self.stored.pairs[layer])
        return with_product(weight, a, b, self.stored.scaling[layer])

    def place(self, name: str) -> str:
        return self.base.place(name)


def fingerprint_of(tensors: TensorReader, num_tokens: int) -> dict[str, str]:
    """The fingerprint of weights on disk; of merged ones by their parts, for no two machines round a product alike."""
    if not isinstance(tensors, MergedTensors):
        return fingerprint(((name, tensors.read(name)) for name in sorted(tensors.infos)), num_tokens)
    stored, under = tensors.stored, fingerprint_of(tensors.base, num_tokens)
    parts = {
        f"{name}.{part}": tensor
        for name, (a, b) in stored.pairs.items()
        for part, tensor in (("A", a), ("B", b), ("scale", torch.tensor([stored.scaling[name]])))
    }
    over = fingerprint(sorted(parts.items()), num_tokens)
    return {
        kind: hashlib.blake2b(f"{under[kind]} {over[kind]}".encode(), digest_size=16).hexdigest()
        for kind in under.keys() & over.keys()
    }


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
        infos = {n: replace(info, shape=shapes.get(n, info.shape)) for n, info in base.tensors.infos.items()}
        if agree(fingerprint_of(base.tensors, base.tokenizer.vocab_size), stored.base["fingerprint"]):
            return MergedTensors(base.tensors, stored, infos)
        reasons.append(f"{path}: its weights are others now")
    raise ConfigError(f"{folder}: holds adapters alone, and what they stand on is not found: {'; '.join(reasons)}")


def open_peft(folder: Path, tokenizer: str | None) -> ModelSource:
    """The model of a PEFT folder, merged, with the folder's own tokenizer where it has one.

    Args:
        tokenizer: a `tokenizer.name` to use instead.

    Raises:
        ConfigError: its base is not on this machine, or is another model, or the tokenizer gives other ids.
    """
    stored = read_stored(folder, None)
    named = stored.base["path"]
    where = f"{folder / ADAPTER}: base_model_name_or_path = {shown(named)}"
    places = [Path(str(named)), folder / str(named)]
    place = next((place for place in places if named and place.is_dir()), None)
    if place is None:
        how = hub_download(str(named)) or "; set it to the folder of the model that the adapters stand on"
        raise ConfigError(f"{where}: no such folder{how}")
    is_one_set = is_hf_folder(place) or is_adapter_folder(place)  # such as the export of an average
    weights = "trained" if is_one_set else stored.base.get("weights", "trained")
    base = open_model_source(str(place), tokenizer, where, weights)
    known = stored.base.get("fingerprint")
    if known and not agree(fingerprint_of(base.tensors, base.tokenizer.vocab_size), known):
        raise ConfigError(f"{where}: holds other weights than the adapters were trained on; set it to where these are")
    for name, (a, b) in stored.pairs.items():
        info = base.tensors.infos.get(f"{name}.weight")
        if info is None or info.shape != (b.shape[0], a.shape[1]):
            raise ConfigError(f"{where}: has no {name} of {b.shape[0]} x {a.shape[1]}, which an adapter is for")
    facts = {"Weights": f"{place.resolve().name} with the adapters of {folder.resolve().name}"}
    source = replace(base, folder=folder, tensors=MergedTensors(base.tensors, stored, base.tensors.infos), facts=facts)
    return source if tokenizer or not (folder / "tokenizer.json").is_file() else _with_own_tokenizer(source, stored)


def _with_own_tokenizer(source: ModelSource, stored: StoredAdapters) -> ModelSource:
    """A PEFT folder's model with the tokenizer and the chat template that its adapters were trained with."""
    folder, args = source.folder, source.args
    tokenizer = build_tokenizer(TokenizerSection(name=escape_path(str(folder))))
    text = other_ids(source.tokenizer, tokenizer)
    why = "" if text is None else f"gives other ids than its base's, as to {shown(text)}"
    if not why and tokenizer.vocab_size > args.vocab_size:
        why = "has more tokens than the model"
    if why:
        raise ConfigError(f"{folder / 'tokenizer.json'}: {why}; name the base's tokenizer with --tokenizer")
    if not source.own:
        args = args.model_copy(update={"num_tokens": tokenizer.vocab_size})
    talks = stored.base.get("knows_chat", knows_chat(None, tokenizer, {}))
    return replace(source, args=args, tokenizer=tokenizer, knows_chat=talks)


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
    with replacement(target) as folder:
        save_file(named, folder / WEIGHTS, metadata={"format": "pt"})
        settle(folder / WEIGHTS)
        write_json(folder / ADAPTER, config, indent=2)
        base = {key: stored.base[key] for key in ("weights", "fingerprint")}
        write_json(folder / FACTS, {**base, "knows_chat": source.knows_chat}, indent=2)
        write_tokenizer(source.tokenizer, folder, source.args.max_seq_len)
    if not is_hf_folder(Path(stored.base["path"])):
        how = " with --weights ema" if stored.base["weights"] == "ema" else ""
        logger.warning(
            f"{stored.base['path']} is a step of titan_pt: for peft export it too{how}, and write its place as "
            f"base_model_name_or_path in {target / ADAPTER}"
        )


def _targets(tensors: MergedTensors, names: list[str]) -> list[str]:
    """The ends of the names where these mean the adapted layers alone, else the whole names."""
    ends = {name.rpartition(".")[2] for name in names}
    meant = [n for n in tensors.infos if n.removesuffix(".weight").rpartition(".")[2] in ends]
    return sorted(ends if len(meant) == len(names) else names)
