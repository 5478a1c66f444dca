"""Tables of the TOML that a plugin's trainer adds to a config."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import create_model

from titan_pt.config.schema.job_config import JobConfig, Section

Config = TypeVar("Config", bound=JobConfig)


def with_sections(config_type: type[Config], sections: Mapping[str, type[Section]]) -> type[Config]:
    """A subclass of a config with more tables; a table with a required key is required itself."""
    fields: dict[str, Any] = {
        name: (kind, ... if any(info.is_required() for info in kind.model_fields.values()) else kind())
        for name, kind in sections.items()
    }
    return create_model(config_type.__name__, __base__=config_type, **fields)
