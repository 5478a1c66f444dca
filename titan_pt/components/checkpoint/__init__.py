"""Whole, verified checkpoints."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from titan_pt.components.checkpoint.checkpointer import CheckpointDocuments as Documents
    from titan_pt.components.checkpoint.checkpointer import Checkpointer, CheckpointError, load_documents, load_tensors

__all__ = ["CheckpointError", "Checkpointer", "Documents", "load_documents", "load_tensors"]


def __getattr__(name: str) -> Any:
    # On first use: `checkpoint.steps` serves tools that start without torch.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from titan_pt.components.checkpoint import checkpointer

    return getattr(checkpointer, "CheckpointDocuments" if name == "Documents" else name)
