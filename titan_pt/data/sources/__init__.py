"""Sets of documents."""

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "register_source":
        from titan_pt.data.sources.registry import register_source

        return register_source
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
