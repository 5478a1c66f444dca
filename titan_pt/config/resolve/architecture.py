"""The layer under all files: an architecture from elsewhere. Imported where `model.from_hf` or a depth names one."""

from typing import Any

from titan_pt.config.errors import shown
from titan_pt.config.resolve import depth
from titan_pt.config.resolve.flags import Flags
from titan_pt.config.resolve.hugging_face import read_folder
from titan_pt.config.resolve.layers import Layer, Merged
from titan_pt.config.schema.job_config import Model
from titan_pt.protocols.model_spec import ModelSpec


def layers_below(
    choices: Merged, flags: Flags, trainer: str, spec: ModelSpec[Any], problems: list[str], notices: list[str]
) -> list[Layer]:
    """The layer of the folder, or of the depth; mistakes join `problems`."""
    said = choices.table_at(["model"]) or {}
    path, flavor = said.get("from_hf"), said.get("flavor", Model().flavor)
    if not isinstance(path, str) or not path:
        return depth.depth_layer(flavor, trainer, spec, _seq_len(choices, flags), problems)
    if flavor != Model().flavor:
        notices.append(f"model.flavor = {shown(flavor)} has no effect: model.from_hf sets the architecture")
    named = f"model.from_hf = {shown(path)} ({choices.origin('model', 'from_hf')})"
    return read_folder(path, named, spec, problems)


def _seq_len(choices: Merged, flags: Flags) -> Any:
    """What the flags or the files say of training.seq_len; None where they say nothing."""
    return dict(flags).get("training.seq_len", (choices.table_at(["training"]) or {}).get("seq_len"))
