"""Open any model for generation, evaluation or export, whether of a run or in a Hugging Face folder."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError

from titan_pt.components.checkpoint.reader import load_documents
from titan_pt.components.checkpoint.steps import check_has_averages, find_initial, is_adapter_folder, is_hf_folder
from titan_pt.components.tokenizer import Tokenizer, build_tokenizer
from titan_pt.config.errors import ConfigError, shown
from titan_pt.config.resolve.toml_files import parse_toml
from titan_pt.config.schema.job_config import TokenizerSection
from titan_pt.hf.chat import knows_chat, stop_ids
from titan_pt.hf.export import Exported, continues_text
from titan_pt.hf.model_card import averaged_facts, run_facts
from titan_pt.hf.tensor_readers import CheckpointTensors, SafetensorsFolder, TensorReader, check_fit
from titan_pt.hf.tokenizer_files import chat_template
from titan_pt.hf.transformer import LAYOUT, read_object
from titan_pt.hf.weights import fill, tied_copies
from titan_pt.models.transformer.args import TransformerArgs
from titan_pt.models.transformer.model import Transformer
from titan_pt.protocols.registry import import_attribute
from titan_pt.run.files import read_text
from titan_pt.run.paths import escape_path

if TYPE_CHECKING:
    from titan_pt.hf.own_model import OwnFamily


@dataclass(frozen=True)
class ModelSource:
    """A model on disk: checked to be whole, its weights not read yet."""

    folder: Path
    """The step-N or the Hugging Face folder."""
    args: Any
    """TransformerArgs; of a model of a plugin's own `own_model.ReadArgs`, what the tools read of these."""
    tokenizer: Tokenizer
    tensors: TensorReader
    facts: Mapping[str, str]
    """Facts of its training for the model card, by label."""
    trainer: str | None
    """Kind of training of a checkpoint; None for a Hugging Face folder."""
    config: Mapping[str, Any]
    """Resolved config of its training by table; empty for a Hugging Face folder."""
    keep_padding: bool
    """Whether an export keeps the padding rows of its vocabulary, because they came with the model."""
    knows_chat: bool
    """Whether it was trained on conversations in the form of its template."""
    own: "OwnFamily | None" = None
    """The family of a model that is not the built-in transformer."""

    @property
    def chat_template(self) -> str:
        """The Jinja chat template: the tokenizer's own, or a simple one."""
        return chat_template(self.tokenizer)

    @property
    def stop_ids(self) -> list[int]:
        """Ids of tokens that end an answer."""
        return stop_ids(self.tokenizer)

    def to_export(self) -> Exported:
        """The argument with which `hf.export.export` writes this model."""
        return Exported(
            self.own.args if self.own else self.args,
            self.own.layout() if self.own else LAYOUT,
            self.tokenizer,
            self.tensors,
            self.facts,
            self.keep_padding,
            self.knows_chat,
            ends_turns=self.trainer is not None,
        )

    def named_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (name in the Transformer, whole tensor on the CPU), one at a time."""
        for name in self.tensors.infos:
            yield name, self.tensors.read(name)

    def load(self, device: torch.device | str, dtype: torch.dtype, *, sdpa_backend: str = "auto") -> Transformer:
        """Load the model for generation and evaluation: no gradients, parameters in `dtype`.

        A forward that is given positions keeps packed documents apart.
        """
        if self.own:
            own: Any = self.own.load(self.tensors, self.args, device, dtype)
            return own
        with torch.device("meta"):
            model = Transformer(self.args, sdpa_backend=sdpa_backend, document_mask=True).to(dtype)
        model.to_empty(device=device)
        model.init_buffers()
        fill(model, self.tensors)
        return model.eval().requires_grad_(False)


def open_model_source(
    path: str, tokenizer: str | None = None, key: str = "--checkpoint", weights: str = "trained"
) -> ModelSource:
    """Open the model at a path.

    Args:
        path: a run folder (its newest whole step), its checkpoint folder, one step-N, or a Hugging Face folder.
        tokenizer: a `tokenizer.name` to use if the one in the run's config has moved; it must give the same ids.
        key: what gave the path, for messages.
        weights: "trained", or "ema" for the averaged ones of training.ema_decay.

    Raises:
        ConfigError: it is damaged, lacks these weights or a tokenizer, is no transformer; names file and tensor or key.
    """
    folder = find_initial(path, key)
    if weights == "ema":
        check_has_averages(folder, "--weights ema")
    if is_adapter_folder(folder):
        source: ModelSource = import_attribute("titan_pt.lora.folders:open_peft")(folder, tokenizer)
        return source
    return _open_hf(folder, tokenizer) if is_hf_folder(folder) else _open_step(folder, tokenizer, weights)


def talks_at(path: str, tokenizer: Tokenizer) -> bool:
    """Whether the model at a path was trained on conversations; False where there is none, which its loading reports.

    Args:
        path: as of `open_model_source`.
        tokenizer: the model's.
    """
    try:
        folder = find_initial(path)
    except ConfigError:
        return False
    if is_adapter_folder(folder):
        return open_model_source(str(folder)).knows_chat
    if is_hf_folder(folder):
        return not continues_text(read_object(folder / "config.json")) and knows_chat(None, tokenizer, {})
    documents = load_documents(folder)
    return knows_chat(documents.train["identity"]["trainer"], tokenizer, documents.data.get("identity", {}))


def _open_hf(folder: Path, tokenizer_name: str | None) -> ModelSource:
    args = LAYOUT.read_config(folder)
    tokenizer = build_tokenizer(_tokenizer_section({"name": tokenizer_name or escape_path(str(folder))}, folder))
    if tokenizer.vocab_size > args.vocab_size:
        raise ConfigError(
            f"{folder}: its tokenizer has {tokenizer.vocab_size} tokens and its config.json vocab_size = "
            f"{args.vocab_size}; they are of two models"
        )
    shapes = _shapes(args, folder)
    tensors = SafetensorsFolder(folder, LAYOUT, tied_copies(args, LAYOUT.vocabulary, shapes))
    check_fit(tensors, shapes)
    return ModelSource(
        folder=folder,
        args=args.model_copy(update={"num_tokens": tokenizer.vocab_size}),
        tokenizer=tokenizer,
        tensors=tensors,
        facts={"Weights": f"unchanged from {folder.resolve().name}"},
        trainer=None,
        config={},
        keep_padding=True,
        knows_chat=not continues_text(read_object(folder / "config.json")) and knows_chat(None, tokenizer, {}),
    )


def _open_step(folder: Path, tokenizer_name: str | None, weights: str) -> ModelSource:
    documents = load_documents(folder)
    identity, state = documents.train["identity"], documents.train["state"]
    config = _saved_config(documents.config, folder)
    own: Any = None
    if identity["model"].get("name") != "transformer":
        from titan_pt.hf.own_model import own_family

        own = own_family(folder, identity["model"], config)
    tokenizer = _saved_tokenizer(config, identity["tokenizer"], tokenizer_name, folder)
    shapes = own.shapes() if own else _shapes(_saved_args(identity["model"], folder), folder)
    tensors: TensorReader = CheckpointTensors(folder, "ema" if weights == "ema" else "model")
    if "adapters" in documents.train:
        initial = config.get("checkpoint", {}).get("initial_load_path")
        merged_step = import_attribute("titan_pt.lora.folders:merged_step")
        tensors = merged_step(folder, initial, tokenizer_name, weights, shapes)
    args = own.read_args(tokenizer.vocab_size, tensors) if own else _saved_args(identity["model"], folder)
    check_fit(tensors, shapes)
    facts = run_facts(config, num_parameters=args.num_parameters, step=state["step"], tokens=state["tokens_seen"])
    return ModelSource(
        folder=folder,
        args=args,
        tokenizer=tokenizer,
        tensors=tensors,
        facts={**facts, **averaged_facts(documents.train, weights)},
        trainer=identity["trainer"],
        config=config,
        keep_padding=bool(config.get("model", {}).get("from_hf")),
        knows_chat=knows_chat(identity["trainer"], tokenizer, documents.data.get("identity", {})),
        own=own,
    )


def _saved_args(saved: Mapping[str, Any], folder: Path) -> TransformerArgs:
    values = {name: value for name, value in saved.items() if name != "name"}
    try:
        return TransformerArgs.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"{folder / 'train.json'}: identity.model.{where}: {first['msg']}; was it saved by a newer version?"
        ) from None


def _saved_config(text: str, folder: Path) -> dict[str, Any]:
    """Parse the run's resolved config, saved in the step, or for older steps in the run folder."""
    file = folder / "config.toml" if text else folder.parent.parent / "config.toml"
    try:
        found: dict[str, Any] = parse_toml(text or read_text(file))
        return found
    except FileNotFoundError:
        return {}
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from None


def _saved_tokenizer(
    config: Mapping[str, Any], identity: Mapping[str, Any], name: str | None, folder: Path
) -> Tokenizer:
    table = {**config.get("tokenizer", {}), **({"name": name} if name else {})}
    if "name" not in table:
        raise ConfigError(f"{folder}: has no config.toml, so its tokenizer is not known; name it with --tokenizer")
    try:
        tokenizer = build_tokenizer(_tokenizer_section(table, folder))
    except ConfigError as error:
        raise ConfigError(f"{folder}: {error}; --tokenizer names another place of the same tokenizer") from None
    if tokenizer.fingerprint != identity["fingerprint"]:
        raise ConfigError(
            f"{folder}: was trained with tokenizer {identity['fingerprint']}, and {table['name']!r} is "
            f"{tokenizer.fingerprint}; name the same one with --tokenizer"
        )
    return tokenizer


def _tokenizer_section(table: Mapping[str, Any], folder: Path) -> TokenizerSection:
    try:
        return TokenizerSection.model_validate(dict(table))
    except ValidationError as error:
        reason = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{folder}: tokenizer.name = {shown(table.get('name'))}: {reason}") from None


def _shapes(args: TransformerArgs, folder: Path) -> dict[str, tuple[int, ...]]:
    try:
        with torch.device("meta"):
            parameters = Transformer(args).named_parameters()
            return {name: tuple(parameter.shape) for name, parameter in parameters}
    except (RuntimeError, MemoryError, OverflowError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{folder / 'config.json'}: no model can have these sizes: {reason}") from None
