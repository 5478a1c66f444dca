"""titan_pt: one TOML file takes a small language model from raw text to a reasoning model.

In Python, by `titan_pt.api`: `titan_pt.run(config, overrides={...})`, `titan_pt.load(path).generate(text)`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from titan_pt.api import load, run

__version__ = "0.1.0"
__all__ = ["__version__", "load", "run"]


def __getattr__(name: str) -> Any:
    if name == "load":
        return importlib.import_module("titan_pt.api").load
    if name == "run":  # the package of that name, which can be called
        return importlib.import_module("titan_pt.run")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
