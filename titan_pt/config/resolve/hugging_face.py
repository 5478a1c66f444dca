"""The layer of a config that `model.from_hf` stands for. Imported where a config names such a folder."""

from pathlib import Path
from typing import Any

from titan_pt.config.errors import ConfigError
from titan_pt.config.resolve.checks import DERIVED_ARGS
from titan_pt.config.resolve.layers import Layer
from titan_pt.protocols.model_spec import ModelSpec
from titan_pt.run.paths import expand_path


def read_folder(path: str, said: str, model_spec: ModelSpec[Any], problems: list[str]) -> list[Layer]:
    """The layer under all others: the folder's architecture and its tokenizer.

    Args:
        said: key, value and origin, for what joins `problems`.
    """
    layout = model_spec.layout()
    if layout is None:
        problems.append(f"{said}: model {model_spec.name!r} has no Hugging Face layout")
        return []
    try:
        folder = Path(expand_path(path))
    except ValueError:  # validation says so
        return []
    try:
        args = layout.read_config(folder)
    except ConfigError as error:
        problems += [f"{said}: {problem}" for problem in error.problems]
        return []
    tables = {"model": args.model_dump(exclude_none=True, exclude=set(DERIVED_ARGS))}
    if (folder / "tokenizer.json").is_file():
        tables["tokenizer"] = {"name": path}
    return [Layer(str(folder / "config.json"), tables)]
