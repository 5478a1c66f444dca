"""A model family as a dataclass of functions, and the registry of families."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydantic import BaseModel

from titan_pt.protocols.registry import Registry, import_attribute

if TYPE_CHECKING:
    from torch import nn

    from titan_pt.config.schema.job_config import JobConfig
    from titan_pt.distributed.world import World

Args = TypeVar("Args", bound=BaseModel)


@dataclass(frozen=True, kw_only=True)
class HuggingFaceLayout(Generic[Args]):
    """Translates a model family to the format of Hugging Face folders: config.json and the names of tensors."""

    read_config: Callable[[Path], Args]
    """Reads the arguments from a folder; raises a ConfigError that names file and key."""
    write_config: Callable[[Args], dict[str, Any]]
    """Returns the content of config.json for the arguments, without token ids and type."""
    to_name: Callable[[str], str]
    """Translates a parameter's name to the tensor's name in the folder."""
    from_name: Callable[[str], str | None]
    """Translates a tensor's name to the parameter's; None if it is no weight. An unknown name stays as it is."""
    vocabulary: tuple[str, ...]
    """Parameters whose rows are tokens."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec(Generic[Args]):
    """A model family as functions.

    `build` makes the module on the current device (meta while a run starts). The module's forward is
    `forward(tokens_BL, positions_BL=None, head=None)`: with a `head` it returns `head(hidden_BLD, weight_VD)`, else
    logits_BLV; and `init_weights(seed)` fills parameters and buffers, the same numbers on any number of ranks. RL reads
    a prompt once for all of its completions where the forward also has an argument `segments_BL` (`document_mask`).
    """

    name: str
    args_type: type[Args]
    """Class of the architecture's fields; each is a key of `[model]`; vocab_size gets the padded tokenizer size."""
    flavors: Mapping[str, Args]
    build: "Callable[[Args, JobConfig], nn.Module]"
    parallelize: "Callable[[nn.Module, JobConfig, World], nn.Module]"
    """Activation checkpointing, compile and sharding, in place; returns the module."""
    flops_per_token: Callable[[Args, int], float]
    """Returns the floating-point operations of training on one token, from (args, seq_len)."""
    hugging_face: HuggingFaceLayout[Args] | str | None = None
    """The layout for `model.from_hf`, starting weights and exports, or its "module:attribute"; None: no layout."""

    def layout(self) -> HuggingFaceLayout[Args] | None:
        """The layout of the family's Hugging Face folders, imported if need be; None: it has none."""
        return import_attribute(self.hugging_face) if isinstance(self.hugging_face, str) else self.hugging_face


_MODELS: Registry[ModelSpec[Any]] = Registry("model spec {}", {"transformer": "titan_pt.models.transformer:SPEC"})


def register_model_spec(spec: ModelSpec[Any]) -> ModelSpec[Any]:
    """Make a model known by `[model] name`. A second registration of a name is an error."""
    return _MODELS.register(spec.name, spec)


def get_model_spec(name: str) -> ModelSpec[Any]:
    """Return the spec of `[model] name`.

    Raises:
        ConfigError: the name is unknown; lists the known ones.
    """
    return _MODELS.find(name, "model.name")


def model_names() -> set[str]:
    """Names of all model families: the built-in ones and those registered so far."""
    return set(_MODELS)
