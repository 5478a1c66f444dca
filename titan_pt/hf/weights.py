"""Load weights into an existing model, from a checkpoint or a Hugging Face folder."""

import json
import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from titan_pt.components.checkpoint.compatibility import NOT_THE_MODEL
from titan_pt.components.checkpoint.run_state import model_tensors
from titan_pt.components.tokenizer import Tokenizer, build_tokenizer
from titan_pt.config.errors import ConfigError, shown
from titan_pt.config.schema.job_config import JobConfig, TokenizerSection
from titan_pt.distributed.init import copy_full
from titan_pt.hf.tensor_readers import SafetensorsFolder, TensorReader, check_fit
from titan_pt.hf.tokenizer_files import to_tokenizers
from titan_pt.protocols.context import TrainContext
from titan_pt.run.paths import escape_path
from titan_pt.run.progress import Progress

logger = logging.getLogger("titan_pt")

# Arguments that may differ between a folder and the run it starts: padding of the vocabulary, longest input, and what
# trained weights do not depend on.
_FREE = ("vocab_size", "num_tokens", "max_seq_len", *NOT_THE_MODEL)
_PROBE = "The end, 1234567 + 89 = ?\n\n\tdef f(x):  # naïve Größe, 北京, مرحبا, 🤷 don't we'll"
# Parts of a tokenizer.json that do not decide which ids a text gets.
_NOT_IDS = ("version", "truncation", "padding", "post_processor", "decoder")


def load_hf_weights(context: TrainContext[Any], folder: Path) -> None:
    """Fill the model of a run from a Hugging Face folder; each rank reads it and keeps its shards.

    Raises:
        ConfigError: the folder is damaged, or of another model or tokenizer; names file and tensor or key.
    """
    config, tokenizer, layout = context.config, context.tokenizer, context.model_spec.layout()
    if layout is None:
        raise ConfigError(f"{folder}: model.name = {context.model_spec.name!r} has no Hugging Face layout")
    theirs = layout.read_config(folder)
    check_args(context.args.model_dump(), theirs.model_dump(), config, folder)
    _check_tokenizer(tokenizer, config, folder)
    copies = tied_copies(theirs, layout.vocabulary, model_tensors(context.model))
    fill_run(context, SafetensorsFolder(folder, layout, copies), layout.vocabulary)


def fill_run(context: TrainContext[Any], reader: TensorReader, vocabulary: Collection[str]) -> None:
    """Fill the model of a run.

    Rows of the vocabulary above the tokenizer's may be more or fewer than here: nothing can choose them.

    Raises:
        ConfigError: the weights do not fit the model.
    """
    expected = {name: tuple(parameter.shape) for name, parameter in model_tensors(context.model).items()}
    check_fit(reader, expected, dict.fromkeys(vocabulary, context.tokenizer.vocab_size))
    fill(context.model, reader)


def tied_copies(args: Any, vocabulary: Collection[str], parameters: Collection[str]) -> dict[str, str]:
    """Tensors that a folder may hold twice because the model ties them: {name of the copy: name in the model}."""
    if not getattr(args, "tie_embeddings", False):
        return {}
    here = next(name for name in vocabulary if name in parameters)
    return {name: here for name in vocabulary if name not in parameters}


@torch.no_grad()
def fill(
    model: nn.Module, reader: TensorReader, note: Callable[[str, torch.Tensor], None] = lambda _name, _full: None
) -> None:
    """Copy every tensor into a model that it fits, one at a time; rows that are missing become zero.

    Args:
        note: is given each name and what was read.
    """
    parameters = model_tensors(model)
    with Progress("Reading the weights", "bytes", sum(info.num_bytes for info in reader.infos.values())) as progress:
        for name, info in reader.infos.items():
            parameter, full = parameters[name], reader.read(name)
            note(name, full)
            missing = parameter.shape[0] - full.shape[0]
            if missing > 0:
                full = F.pad(full, (0, 0, 0, missing))
            copy_full(parameter, full[: parameter.shape[0]])
            progress.add(info.num_bytes)


def check_args(ours: Mapping[str, Any], theirs: Mapping[str, Any], config: JobConfig, folder: Path) -> None:
    """Raise a ConfigError unless a folder's arguments make the run's model."""
    differences = [
        f"model.{name} is {theirs.get(name)!r} there and {ours[name]!r} here"
        for name in ours
        if name not in _FREE and ours[name] != theirs.get(name)
    ]
    if differences and config.model.from_hf:  # the TOML overrides a value of the folder on purpose
        logger.warning(f"{folder / 'config.json'}: {'; '.join(differences)}")
    elif differences:
        raise ConfigError(f"{folder / 'config.json'}: {'; '.join(differences)}; set model.from_hf = '{folder}'")


def _check_tokenizer(tokenizer: Tokenizer, config: JobConfig, folder: Path) -> None:
    """Ids mean other words to another tokenizer. One file's ids are compared, as its end of document may differ."""
    if not (folder / "tokenizer.json").is_file():
        return
    theirs = build_tokenizer(TokenizerSection(name=escape_path(str(folder)), eos_token=config.tokenizer.eos_token))
    check_ids(tokenizer, theirs, config, folder)


def check_ids(tokenizer: Tokenizer, theirs: Tokenizer, config: JobConfig, folder: Path) -> None:
    """Raise a ConfigError unless a folder's tokenizer gives the run's ids."""
    text = other_ids(tokenizer, theirs)
    if text is not None:
        raise ConfigError(
            f"{folder / 'tokenizer.json'}: gives other ids than tokenizer.name = {config.tokenizer.name!r}, such as to "
            f"{shown(text)}; set tokenizer.name = '{folder}'"
        )


def other_ids(one: Tokenizer, other: Tokenizer) -> str | None:
    """A text to which two tokenizers give different ids, or None: they have the same rules, or agree on every token."""
    if one.fingerprint == other.fingerprint or ((rules := _rules(one)) is not None and rules == _rules(other)):
        return None
    texts = [_PROBE, *(other.decode([i]) for i in range(other.vocab_size) if i not in other.special_ids.values())]
    return next((text for text in texts if one.encode(text) != other.encode(text)), None)


def _rules(tokenizer: Tokenizer) -> dict[str, Any] | None:
    try:
        rules: dict[str, Any] = json.loads(to_tokenizers(tokenizer).to_str())
    except TypeError:  # of an unknown class
        return None
    return {key: value for key, value in rules.items() if key not in _NOT_IDS}
