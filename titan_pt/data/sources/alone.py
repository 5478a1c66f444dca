"""Opens the sources of a mixture in a process without ranks, for tools."""

from collections.abc import Sequence

from titan_pt.config.run_size import plan_run_size
from titan_pt.config.schema.job_config import JobConfig, Source
from titan_pt.data.sources.opening import MixtureSource, data_settings, list_all, open_all
from titan_pt.data.sources.registry import SourceContext


def open_alone(sources: Sequence[Source], config: JobConfig) -> list[MixtureSource]:
    """Open the sources in a process without ranks, for tools."""
    context = SourceContext(data_settings(config, plan_run_size(config, 1).num_streams))
    return open_all(sources, list_all(sources, context), context)
