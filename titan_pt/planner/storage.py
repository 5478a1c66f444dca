"""Bytes on disk: one checkpoint, and all that a run keeps."""

from dataclasses import dataclass

from titan_pt.config.schema.grpo import GrpoConfig
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.planner.memory import moment_bytes


@dataclass(frozen=True)
class Storage:
    """Of one run."""

    checkpoint_bytes: float
    """One whole step: weights in float32, Adam's moments, a reference if there is one."""
    kept: int
    """Checkpoints that stay."""
    disk_bytes: float
    """The most at a time: those, one under way, and the Hugging Face folders."""


def storage(config: JobConfig, num_parameters: int, steps: int) -> Storage:
    """What `[checkpoint]` makes of a model of that size."""
    options = config.checkpoint
    has_reference = isinstance(config, GrpoConfig) and config.grpo.kl_coef > 0
    whole = num_parameters * (4 + moment_bytes(config) + (4 if has_reference else 0))
    if not options.enable or options.load_only:
        return Storage(whole, 0, 0.0)
    saved = -(-steps // options.interval)
    kept = min(saved, options.keep_latest_k) if options.keep_latest_k else saved
    exports = -(-steps // options.export_hf_interval) if options.export_hf_interval else 0
    under_way = 1 if saved > kept else 0
    return Storage(whole, kept, (kept + under_way) * whole + exports * 4 * num_parameters)
