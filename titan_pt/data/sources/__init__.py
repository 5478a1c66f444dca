"""Sets of documents: local files here, other kinds through a registry that imports them when a run uses them."""

from titan_pt.data.sources.registry import register_source

__all__ = ["register_source"]
