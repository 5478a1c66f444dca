"""Objects by name, imported when they are first used: how the core reaches a wing that it does not know."""

import importlib
from typing import Any


def load(name: str) -> Any:
    """The object that "module:attribute" names."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
