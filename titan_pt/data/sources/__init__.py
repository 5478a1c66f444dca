"""Sets of documents."""

from titan_pt.data.sources.registry import register_source

__all__ = ["register_source"]
