"""The model of a tool: its command-line flags, and how they become weights on a device."""

import argparse
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from titan_pt.components.checkpoint.no_run import no_run
from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.sampling import SAMPLING_RANGES
from titan_pt.run.tool_files import flag_path
from titan_pt.tools.command import INTEGER, ToolParser

if TYPE_CHECKING:
    import torch

    from titan_pt.generation.native import NativeEngine
    from titan_pt.generation.sampling import Sampling
    from titan_pt.hf.model_source import ModelSource
    from titan_pt.models.transformer.model import Transformer


@dataclass(frozen=True)
class OpenModel:
    """A model with its weights on a device."""

    source: "ModelSource"
    model: "Transformer"
    device: "torch.device"

    def engine(self, *, max_rows: int = 1024, stride: int = 16, chat: bool = True) -> "NativeEngine":
        """Build an engine that generates with this model: the native one, for models of one's own a plain one.

        Args:
            chat: the end of a turn ends a text too; the chat template is rendered for it.
        """
        from titan_pt.generation.native import NativeEngine
        from titan_pt.models.transformer.model import Transformer

        if not isinstance(self.model, Transformer):
            from titan_pt.generation.plain import PlainEngine

            plain: Any = PlainEngine(self.model, self.stop_ids(chat=chat), max_rows)
            return plain
        return NativeEngine(self.model, self.stop_ids(chat=chat), max_rows, stride=stride)

    def stop_ids(self, *, chat: bool = True) -> list[int]:
        """Ids of tokens that end a text, as of `engine`."""
        from titan_pt.hf.chat import stop_ids

        return stop_ids(self.source.tokenizer, chat=chat)


def add_source_flags(parser: ToolParser) -> None:
    """Add MODEL or --checkpoint, which are one, --tokenizer and --weights: the arguments of `open_model_source`."""
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--checkpoint", metavar="MODEL", help=argparse.SUPPRESS).required = True
    what = (
        "a run folder (its newest whole step), its checkpoint folder, one step-N, or a Hugging Face folder; "
        "--checkpoint MODEL is the same"
    )
    model.add_argument("checkpoint", nargs="?", action=_Model, default=argparse.SUPPRESS, metavar="MODEL", help=what)
    parser.add_argument("--tokenizer", metavar="NAME", help="where the tokenizer of the run's config has moved")
    parser.add_argument(
        "--weights",
        choices=["trained", "ema"],
        default="trained",
        help="of a checkpoint: the trained weights, or their average of training.ema_decay (default: %(default)s)",
    )


class _Model(argparse.Action):
    """The model without its flag, which is not needed then."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, value: Any, *_: Any) -> None:
        if value.startswith("--"):  # an unknown flag with a blank in its value
            parser.error(f"unrecognized arguments: {value}")
        namespace.checkpoint = value
        parser._option_string_actions["--checkpoint"].required = False


def add_model_flags(parser: ToolParser) -> None:
    """Add the flags of `add_source_flags`, and those that say how to load the model."""
    add_source_flags(parser)
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        help="type to compute in (default: bfloat16 on an accelerator, float32 on a CPU)",
    )
    parser.add_argument(
        "--quantize",
        choices=["int8", "int4"],
        help="hold the weights of all blocks in fewer bits; int4 on CUDA only",
    )


def add_sampling_flags(parser: ToolParser, *, temperature: float) -> None:
    """Add --temperature, --top_p, --top_k and --seed."""
    parser.add_argument(
        "--temperature", type=float, default=temperature, help="0 takes the likeliest token (default: %(default)s)"
    )
    parser.add_argument(
        "--top_p", type=float, default=1.0, help="sample from the likeliest tokens that reach this probability"
    )
    parser.add_argument("--top_k", type=INTEGER, default=0, help="sample from the k likeliest; 0: all")
    parser.add_argument(
        "--seed", type=INTEGER, default=42, help="the same seed gives the same text (default: %(default)s)"
    )


def open_model(arguments: argparse.Namespace) -> OpenModel:
    """Load the model that the flags of `add_model_flags` name.

    Raises:
        ConfigError: there is no whole model, or it cannot be quantized so.
    """
    return load_model(open_source(arguments), arguments)


def open_source(arguments: argparse.Namespace) -> "ModelSource":
    """Find the model that the flags of `add_source_flags` name.

    Raises:
        ConfigError: there is no whole model.
    """
    path = str(flag_path("--checkpoint", arguments.checkpoint))
    if not os.path.isdir(path):  # told before torch takes its seconds
        raise ConfigError(f"--checkpoint = {path!r}: {no_run(path)}")
    from titan_pt.hf.model_source import open_model_source

    return open_model_source(path, arguments.tokenizer, weights=arguments.weights)


def load_model(source: "ModelSource", arguments: argparse.Namespace, dtype: str | None = None) -> OpenModel:
    """Load the weights of a model as the flags of `add_model_flags` say.

    Args:
        dtype: type to compute in; None: --dtype or its default.

    Raises:
        ConfigError: the model cannot be quantized so.
    """
    import torch

    from titan_pt.distributed.world import find_device
    from titan_pt.generation.quantize import quantize_weights
    from titan_pt.models.transformer.model import Transformer

    device = find_device()
    name = dtype or arguments.dtype or ("float32" if device.type == "cpu" else "bfloat16")
    model = source.load(device, getattr(torch, name))
    if arguments.quantize and not isinstance(model, Transformer):
        raise ConfigError(f"--quantize = {arguments.quantize!r}: needs the built-in transformer; leave it out")
    if arguments.quantize:
        quantize_weights(model, arguments.quantize)
    return OpenModel(source, model, device)


def sampling_problems(arguments: argparse.Namespace) -> list[str]:
    """What is wrong with the numbers of sampling among the flags, each as a line."""
    given = {name: value for name in SAMPLING_RANGES if (value := getattr(arguments, name, None)) is not None}
    problems = {name: SAMPLING_RANGES[name].problem(value) for name, value in given.items()}
    return [f"--{name} = {given[name]}: {problem}" for name, problem in problems.items() if problem]


def sampling(arguments: argparse.Namespace, max_new_tokens: int) -> "Sampling":
    """Build the sampling settings from the flags of `add_sampling_flags`.

    Raises:
        ConfigError: a value out of its range.
    """
    from titan_pt.generation.sampling import Sampling

    if problems := sampling_problems(arguments):
        raise ConfigError(*problems)
    return Sampling(
        max_new_tokens,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        top_k=arguments.top_k,
        seed=arguments.seed,
    )
