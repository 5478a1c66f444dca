"""The transformer family. Its classes that need torch are imported on first use."""

from typing import TYPE_CHECKING, Any

from titan_pt.models.transformer.args import FLAVORS, TransformerArgs, flops_per_token
from titan_pt.protocols.model_spec import ModelSpec

if TYPE_CHECKING:
    from torch import nn

    from titan_pt.config.schema.job_config import JobConfig
    from titan_pt.distributed.world import World
    from titan_pt.models.transformer.model import Transformer


def _build(args: TransformerArgs, config: "JobConfig") -> "nn.Module":
    from titan_pt.models.transformer.model import Transformer

    return Transformer(args, sdpa_backend=config.model.sdpa_backend, document_mask=config.training.document_mask)


def _parallelize(model: "nn.Module", config: "JobConfig", world: "World") -> "nn.Module":
    from titan_pt.models.transformer.parallelize import parallelize

    return parallelize(model, config, world)


def __getattr__(name: str) -> Any:
    if name == "Transformer":
        from titan_pt.models.transformer.model import Transformer

        return Transformer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


SPEC = ModelSpec(
    name="transformer",
    args_type=TransformerArgs,
    flavors=FLAVORS,
    build=_build,
    parallelize=_parallelize,
    flops_per_token=flops_per_token,
    hugging_face="titan_pt.hf.transformer:LAYOUT",
)

__all__ = ["FLAVORS", "SPEC", "Transformer", "TransformerArgs"]
