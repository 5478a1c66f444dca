"""titan_pt: one TOML file takes a small language model from raw text to a reasoning model."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from titan_pt.api import load, run

__version__ = "0.1.0"
__all__ = ["__version__", "load", "run"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("titan_pt.api"), name)  # with all that it imports
