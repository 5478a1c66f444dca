"""The transformer family. What needs torch is imported on first use."""

from typing import Any

from titan_pt.models.transformer.args import FLAVORS, TransformerArgs, flops_per_token
from titan_pt.protocols.model_spec import ModelSpec
from titan_pt.protocols.registry import import_attribute

_MODEL, _PARALLELIZE = (
    f"titan_pt.models.transformer.{name}" for name in ("model:Transformer", "parallelize:parallelize")
)


def __getattr__(name: str) -> Any:
    if name == "Transformer":
        return import_attribute(_MODEL)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


SPEC = ModelSpec(
    name="transformer",
    args_type=TransformerArgs,
    flavors=FLAVORS,
    build=lambda args, config: import_attribute(_MODEL)(
        args, sdpa_backend=config.model.sdpa_backend, document_mask=config.training.document_mask
    ),
    parallelize=lambda model, config, world: import_attribute(_PARALLELIZE)(model, config, world),
    flops_per_token=flops_per_token,
    hugging_face="titan_pt.hf.transformer:LAYOUT",
)

__all__ = ["FLAVORS", "SPEC", "Transformer", "TransformerArgs"]
