"""Typed configuration: `JobConfig` and `load_config`."""

from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.job_config import JobConfig, Section


def load_config(argv: list[str] | None = None) -> JobConfig:
    """Load the config of command-line arguments; `titan_pt.config.manager.load_config` says how."""
    from titan_pt.config.manager import load_config as load  # the manager needs the specs, which need the sections

    return load(argv)


__all__ = ["ConfigError", "JobConfig", "Section", "load_config"]
