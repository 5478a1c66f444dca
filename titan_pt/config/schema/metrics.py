"""The tables [metrics] and [profiling]."""

from typing import Annotated

from pydantic import Field

from titan_pt.config.schema.section import Count, Name, PathName, PositiveInt, Section


class Metrics(Section):
    """[metrics] console, metrics.jsonl, TensorBoard and other sinks."""

    log_freq: PositiveInt = 10
    """Steps between log lines; step 1 and the last step are always logged."""
    sinks: list[Name] = []
    """Where rows go beside metrics.jsonl: "tensorboard", "wandb", "trackio", or a name of `register_sink`."""
    enable_tensorboard: bool = True
    """Write TensorBoard events; adds "tensorboard" to `sinks`."""
    enable_wandb: bool = False
    """Write to Weights & Biases; adds "wandb" to `sinks`."""
    prometheus_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Port where rank 0 tells a Prometheus server the step, its age and the last row."""
    prometheus_host: Name = "127.0.0.1"
    """Address of that port; "0.0.0.0" lets other machines ask."""
    save_tb_folder: PathName = "tb"
    """Folder of the TensorBoard events inside the run folder."""
    disable_color_printing: bool = False
    """Plain console lines; they are plain too where the output is not a terminal."""

    @property
    def used_sinks(self) -> set[str]:
        """The names of all sinks in use."""
        enabled = {"tensorboard": self.enable_tensorboard, "wandb": self.enable_wandb}
        return {*self.sinks, *(name for name, used in enabled.items() if used)}


class Profiling(Section):
    """[profiling] traces and memory snapshots."""

    enable_profiling: bool = False
    """Record traces with torch.profiler."""
    save_traces_folder: PathName = "profile_traces"
    """Folder of the traces inside the run folder: iteration_N/rankR_trace.json."""
    profile_freq: PositiveInt = 10
    """Steps between traces."""
    profiler_active: PositiveInt = 1
    """Steps recorded in a trace."""
    profiler_warmup: Count = 3
    """Steps traced and thrown away before those."""
    enable_memory_snapshot: bool = False
    """Write CUDA's allocator history every profile_freq steps, and when memory runs out. CUDA only."""
    save_memory_snapshot_folder: PathName = "memory_snapshot"
    """Folder of the memory snapshots inside the run folder."""
