"""Whole, verified checkpoints."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from titan_pt.components.checkpoint.checkpointer import CheckpointDocuments as Documents
    from titan_pt.components.checkpoint.checkpointer import Checkpointer, CheckpointError
    from titan_pt.components.checkpoint.reader import load_documents, load_tensors

__all__ = ["CheckpointError", "Checkpointer", "Documents", "load_documents", "load_tensors"]


def __getattr__(name: str) -> Any:
    # On first use: `checkpoint.steps` serves tools that start without torch.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{'reader' if name.startswith('load_') else 'checkpointer'}")
    return getattr(module, "CheckpointDocuments" if name == "Documents" else name)
