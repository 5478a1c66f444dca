"""The table [checkpoint]."""

from typing import Literal

from titan_pt.config.schema.section import AllOrCount, AnyPath, Count, PathName, PositiveInt, Section


class Checkpoint(Section):
    """[checkpoint] whole, verified, resumable steps."""

    enable: bool = True
    """Save checkpoints and resume from the newest whole one."""
    folder: PathName = "checkpoint"
    """Folder inside the run folder."""
    interval: PositiveInt = 500
    """Steps between checkpoints; the last step is always saved."""
    initial_load_path: AnyPath | None = None
    """Starting weights where there is no checkpoint: a run folder, its checkpoint folder, one step-N, a Hugging Face
    folder. Empty text: none, whatever a file below says."""
    async_mode: Literal["auto", "disabled", "async", "async_with_pinned_mem"] = "auto"
    """Write in the background; training waits only for the copy to CPU memory, which is fast where that is pinned.
    "auto": pinned on CUDA, else disabled."""
    keep_latest_k: Count = 10
    """Whole checkpoints kept; 0 keeps all."""
    load_step: AllOrCount = -1
    """Step to go back to, once: the same command then goes on from its own steps. -1: the newest whole one."""
    exclude_from_loading: list[Literal["optimizer", "data"]] = []
    """State that a resume leaves at its start, once: the way out when optimizer or data of a run have to change."""
    enable_first_step_checkpoint: bool = False
    """Save step 1 too, to see early that saving works."""
    load_only: bool = False
    """Load, never save."""
    export_hf_interval: Count = 0
    """Steps between Hugging Face folders `hf/step-N` of the run folder; the last step has one too. 0: none."""
