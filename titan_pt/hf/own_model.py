"""A model family of a plugin's own in the place of the transformer, for the tools. Imported where a run has one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from titan_pt.config.errors import ConfigError
from titan_pt.config.manager import load_config
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.hf.tensor_readers import TensorReader
from titan_pt.hf.weights import fill
from titan_pt.protocols.model_spec import HuggingFaceLayout, ModelSpec, get_model_spec
from titan_pt.protocols.plugins import import_plugin
from titan_pt.run.paths import escape_path


@dataclass(frozen=True)
class ReadArgs:
    """What the tools ask of a model's arguments."""

    max_seq_len: int
    """Its field of that name, else the training.seq_len that it was trained with."""
    vocab_size: int
    num_tokens: int
    num_parameters: int


class OwnModel(nn.Module):
    """Any module with the forward of `ModelSpec`, beside what the tools ask of the transformer."""

    def __init__(self, module: nn.Module, args: ReadArgs) -> None:
        super().__init__()
        self.module, self.args = module, args
        device = next(module.parameters()).device
        self.output_weight: torch.Tensor = module(
            torch.zeros(1, 1, dtype=torch.long, device=device), None, lambda _hidden, weight: weight
        )

    def forward(
        self,
        tokens_BL: torch.Tensor,
        positions_BL: torch.Tensor | None = None,
        head: Callable[[torch.Tensor, torch.Tensor], Any] | None = None,
    ) -> Any:
        return self.module(tokens_BL, positions_BL, head)


@dataclass(frozen=True)
class OwnFamily:
    """The family of a step whose model is none of the built-in ones."""

    folder: Path
    spec: ModelSpec[Any]
    args: Any
    """An instance of `spec.args_type`."""
    config: JobConfig
    """The run's config, which the spec builds the model from."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each parameter by name."""
        with torch.device("meta"):
            return {
                name: tuple(tensor.shape) for name, tensor in self.spec.build(self.args, self.config).named_parameters()
            }

    def read_args(self, num_tokens: int, tensors: TensorReader) -> ReadArgs:
        """What the tools ask of its arguments."""
        size = sum(torch.Size(info.shape).numel() for info in tensors.infos.values())
        longest = getattr(self.args, "max_seq_len", None) or self.config.training.seq_len
        return ReadArgs(longest, getattr(self.args, "vocab_size", None) or num_tokens, num_tokens, size)

    def load(self, tensors: TensorReader, args: ReadArgs, device: torch.device | str, dtype: torch.dtype) -> OwnModel:
        """The model: no gradients, parameters in `dtype`; buffers as `init_weights` fills them."""
        with torch.device("meta"):
            module = self.spec.build(self.args, self.config)
        module.to_empty(device=device)
        init_weights: Any = module.init_weights
        init_weights(self.config.debug.seed)
        fill(module, tensors)
        for parameter in module.parameters():
            parameter.data = parameter.data.to(dtype)
        return OwnModel(module.eval().requires_grad_(False), args)

    def layout(self) -> HuggingFaceLayout[Any]:
        """The layout of its Hugging Face folders.

        Raises:
            ConfigError: it has none.
        """
        layout = self.spec.layout()
        if layout is None:
            raise ConfigError(
                f"{self.folder}: model {self.spec.name!r} has no Hugging Face layout, which an export needs: give its "
                "ModelSpec hugging_face = HuggingFaceLayout(read_config=..., write_config=..., to_name=..., "
                "from_name=..., vocabulary=...); docs/extending.md says what each does"
            )
        return layout


def own_family(folder: Path, saved: Mapping[str, Any], config: Mapping[str, Any]) -> OwnFamily:
    """The family of a step.

    Args:
        saved: the arguments in the step, with the model's name.
        config: tables of the run's config.

    Raises:
        ConfigError: the module that brings it cannot be imported here, or has other arguments now.
    """
    values = dict(saved)
    name, module = values.pop("name", None), config.get("experimental", {}).get("custom_import")
    where = f"{folder}: its model is {name!r}"
    if module:
        try:
            import_plugin(module, "experimental.custom_import")
        except ConfigError as error:
            raise ConfigError(f"{where}; {error}; run the tool where that module is, or set PYTHONPATH") from error
    try:
        spec = get_model_spec(str(name))
        args = spec.args_type.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{where}; its {field} in the step does not fit {module}: {first['msg']}") from None
    except ConfigError as error:
        raise ConfigError(f"{where}; {error}; register_model_spec in experimental.custom_import brings it") from None
    file = folder / "config.toml"  # of older steps in the run folder
    file = file if file.is_file() else folder.parent.parent / "config.toml"
    return OwnFamily(folder, spec, args, load_config(["--job.config_file", escape_path(str(file))]))
