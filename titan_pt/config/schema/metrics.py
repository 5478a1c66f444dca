"""The tables [metrics] and [profiling]."""

from titan_pt.config.schema.section import Count, PathName, PositiveInt, Section


class Metrics(Section):
    """[metrics] console, metrics.jsonl, TensorBoard."""

    log_freq: PositiveInt = 10
    """Steps between log lines; step 1 and the last step are always logged."""
    enable_tensorboard: bool = True
    """Write TensorBoard events."""
    save_tb_folder: PathName = "tb"
    """Folder of the TensorBoard events inside the run folder."""
    disable_color_printing: bool = False
    """Plain console lines; they are plain too where the output is not a terminal."""


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
