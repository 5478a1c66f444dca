"""The table [checkpoint]."""

from typing import Literal

from titan_pt.config.schema.section import AllOrCount, AnyPath, Count, Name, PathName, Positive, PositiveInt, Section


class Checkpoint(Section):
    """[checkpoint] whole, verified, resumable steps."""

    enable: bool = True
    """Save checkpoints and resume from the newest whole one."""
    folder: PathName = "checkpoint"
    """Folder inside the run folder."""
    interval: PositiveInt = 500
    """Steps between checkpoints; the last step is always saved."""
    interval_minutes: Positive | None = None
    """Minutes after a save, of either kind, at which the next step is saved too. Unset: steps alone count."""
    initial_load_path: AnyPath | None = None
    """Starting weights where there is no checkpoint: a run folder, its checkpoint folder, one step-N, a Hugging Face
    folder. Empty text: none, whatever a file below says."""
    initial_load_weights: Literal["trained", "ema"] = "trained"
    """Which weights of that run: "ema" are its averaged ones (training.ema_decay)."""
    async_mode: Literal["auto", "disabled", "async", "async_with_pinned_mem"] = "auto"
    """Write in the background; training waits only for the copy to CPU memory, which is fast where that is pinned.
    "auto": pinned on CUDA, else disabled."""
    keep_latest_k: Count = 10
    """Whole checkpoints kept; 0 keeps all."""
    keep_every_n: PositiveInt | None = None
    """Keep the steps that this number divides too, for ever."""
    keep_best: Name | None = None
    """Keep the best by this key of metrics.jsonl too ("val_loss", "eval/gsm8k/accuracy"); `checkpoint/best` is it."""
    max_failed_saves: PositiveInt = 3
    """Failed saves in a row that end the run with exit code 70."""
    load_step: AllOrCount = -1
    """Step to go back to, once: the same command then goes on from its own steps. -1: the newest whole one."""
    exclude_from_loading: list[Literal["optimizer", "data"]] = []
    """State that a resume leaves at its start, once: the way out when optimizer or data of a run have to change."""
    allow_mismatch: list[
        Literal["model.rope_theta", "model.norm_eps", "tokenizer", "data.sources", "validation.holdout_fraction"]
    ] = []
    """Differences from its checkpoint that a resume takes with a warning; docs/resuming.md says what each means."""
    enable_first_step_checkpoint: bool = False
    """Save step 1 too, to see early that saving works."""
    load_only: bool = False
    """Load, never save."""
    mirror: PathName | None = None
    """Address (s3://, gs://) that steps are uploaded to, and from which a start on an empty disk goes on."""
    export_hf_interval: Count = 0
    """Steps between Hugging Face folders `hf/step-N` of the run folder; the last step has one too. 0: none."""
    export_weights: Literal["trained", "ema"] = "trained"
    """Which weights are in these: "ema" are the averaged ones (training.ema_decay)."""
