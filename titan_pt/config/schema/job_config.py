"""The typed sections of a run's TOML file. A field's docstring is its help text.

Names follow TorchTitan's where the thing is the same. A trainer spec adds sections of its own and a model spec adds
its architecture fields to `[model]` (see `manager.config_class`).
"""

from typing import Annotated, Any, Literal

import tomli_w
from pydantic import Field, field_validator

from titan_pt.config.schema.section import (
    AllOrCount,
    Count,
    Fraction,
    Name,
    NonNegative,
    Positive,
    PositiveInt,
    Section,
    Timeout,
)
from titan_pt.config.schema.training import ActivationCheckpoint, Compile, LrScheduler, Optimizer, Parallelism, Training
from titan_pt.config.schema.values import Size


class Job(Section):
    """[job] what runs and where its results go."""

    config_file: str | None = None
    """TOML file of this run."""
    trainer: str = "pretrain"
    """Registered trainer spec: "pretrain", "sft", "grpo" or a name brought by experimental.custom_import."""
    dump_folder: Name = "./outputs"
    """Run folder: config.toml, metrics.jsonl, checkpoint/, tb/. The same folder again resumes the run."""
    description: str = "default job"
    """One line for the log."""
    print_config: bool = False
    """Log the resolved config at start."""


class Model(Section):
    """[model] architecture. Any field of the model's own arguments overrides its flavor."""

    name: str = "transformer"
    """Registered model: "transformer" or a name brought by experimental.custom_import."""
    flavor: str = "debugmodel"
    """Named size of the model; the transformer has debugmodel, tiny, small, medium."""
    from_hf: Name | None = None
    """Hugging Face folder whose config.json sets the architecture, and whose tokenizer is the default one."""
    vocab_size: Annotated[Size, Field(gt=0)] | None = None
    """Rows of the embedding. Unset: the tokenizer's size rounded up to a multiple of 64."""
    attention: Literal["sdpa"] = "sdpa"
    """Attention implementation: "sdpa" is torch's scaled_dot_product_attention."""
    sdpa_backend: Literal["auto", "flash", "efficient", "math", "cudnn"] = "auto"
    """Kernel of scaled_dot_product_attention; "auto" lets torch choose. A kernel the device lacks is refused."""


class Tokenizer(Section):
    """[tokenizer] text to token ids."""

    name: Name = "byte"
    """"byte", "gpt2", or a path: a .tiktoken rank file, a tokenizer.json, or a Hugging Face folder that holds one."""
    eos_token: str | None = None
    """End-of-document token of a tokenizer.json. Unset: what its tokenizer_config.json says, else a common name."""


class Source(Section):
    """[[data.sources]] one set of documents."""

    name: Name
    """Name in logs. Without `path` or `dataset`: a built-in source (fineweb_edu, medqa, gsm8k, python_stdlib,
    arithmetic) or a registered one."""
    path: Name | None = None
    """Local files by glob: .jsonl, .jsonl.gz, .json, .parquet, .txt; a folder of titan_pt.tools.prepare; or the http(s)
    address of a .parquet file, in which {00..13} stands for each of these numbers."""
    dataset: Name | None = None
    """Dataset of the Hugging Face hub (or a local dataset folder). Parquet is streamed, else it is downloaded whole."""
    subset: Name | None = None
    """Configuration of `dataset`, such as "sample-10BT"."""
    split: Name | None = None
    """Split of `dataset`. Unset: "train"."""
    revision: Name | None = None
    """Commit, tag or branch of `dataset`. A run keeps to the commit that it found at its first start."""
    text_field: Name | None = None
    """Column that holds the text of `path` or `dataset`. Unset: "text"."""
    formatter: Name | None = None
    """How a row becomes a text: "text" (the column text_field), "medqa", "gsm8k", or a registered name; in sft how it
    becomes a record: "chat", "medqa", "gsm8k", or a registered name. Unset: that of a built-in name, else the first."""
    weight: Positive = 1.0
    """Share of the training tokens (tokens, not documents), relative to the other sources' weights."""
    max_epochs: Positive | None = None
    """Most passes over this source; a spent source's share goes to the others. Unset: no limit."""


class Data(Section):
    """[data] documents and their order."""

    sources: list[Source] = []
    """The training mixture: a TOML array of tables."""
    num_streams: PositiveInt | None = None
    """Logical streams; divides the global batch in rows, the data ranks divide it. Unset: its largest divisor <= 64."""
    seed: int | None = None
    """Seed of the document order. Unset: debug.seed."""
    packing: Literal["concat", "best_fit"] = "concat"
    """"concat" lays documents end to end and cuts rows; "best_fit" cuts none that fits a row, and pads instead."""
    prefetch_steps: Count = 2
    """Global batches prepared ahead; 0 prepares each when it is asked for."""
    num_workers: Count = 0
    """Processes that read and tokenise for one rank; 0: a thread does. Neither changes the order of the documents."""
    cache_dir: Name | None = None
    """Folder of what was read once. Unset: ~/.cache/titan_pt for row groups of parquet files, and for the Arrow files
    that `datasets` makes of other kinds the library's own ($HF_DATASETS_CACHE)."""
    cache_bytes: Annotated[Size, Field(gt=0)] = 20_000_000_000
    """Most that the row groups in cache_dir take, about 5 MB each; the least recently used go first."""
    request_timeout_seconds: Timeout = 60.0
    """One attempt to read a row group over the network; it is made again, after growing pauses, until it succeeds."""
    stall_policy: Literal["wait", "substitute"] = "wait"
    """When a row group does not come: "wait" for it, or "substitute": read later ones first, and remember that."""
    substitute_after_seconds: Timeout = 600.0
    """How long "substitute" waits before it does so."""
    max_stall_seconds: Timeout = 3600.0
    """A run that gets no data for so long saves a checkpoint and ends with exit code 75; a start fails after it."""


class Checkpoint(Section):
    """[checkpoint] whole, verified, resumable steps."""

    enable: bool = True
    """Save checkpoints and resume from the newest whole one."""
    folder: Name = "checkpoint"
    """Folder inside the run folder."""
    interval: PositiveInt = 500
    """Steps between checkpoints; the last step is always saved."""
    initial_load_path: str | None = None
    """Starting weights where there is no checkpoint: a run folder, its checkpoint folder, one step-N, a Hugging Face
    folder. Empty text: none, whatever a file below says."""
    async_mode: Literal["disabled", "async", "async_with_pinned_mem"] = "disabled"
    """Write in the background; training waits only for the copy to CPU memory."""
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


class ValidationTask(Section):
    """[[validation.tasks]] problems that the model answers at each validation."""

    name: Name
    """gsm8k, medqa, arithmetic, reasoning_gym:<name>, or one registered by experimental.custom_import."""
    path: Name | None = None
    """Local problems by glob (.jsonl, .jsonl.gz, .json, .parquet). Unset: the task's own set of the hub."""
    level: PositiveInt | None = None
    """Difficulty of arithmetic: 1 is the easiest."""
    limit: PositiveInt = 100
    """Most problems asked, the same each time."""
    max_new_tokens: PositiveInt = 256
    """Most tokens of an answer."""


class Validation(Section):
    """[validation] loss on documents that are never trained on, and accuracy on tasks."""

    enable: bool = False
    """Validate at step 1, every `freq` steps and at the last step."""
    freq: PositiveInt = 10
    """Steps between validations."""
    steps: AllOrCount = -1
    """Global batches of one validation, the same each time; -1: all validation documents."""
    local_batch_size: PositiveInt = 8
    """Rows of one micro-batch on one rank."""
    holdout_fraction: Fraction = 0.01
    """Share of each training source's documents held out, chosen by a hash of the text; unused with `sources`."""
    sources: list[Source] = []
    """Validation documents of their own; nothing is then held out of the training sources."""
    tasks: list[ValidationTask] = []
    """Accuracy on tasks, by greedy answers: a TOML array of tables. Takes an unsharded copy of the weights."""
    sample_prompts: list[Name] = []
    """Texts that the model continues in the log and in TensorBoard. Names of special tokens stand for these tokens."""
    sample_tokens: PositiveInt = 64
    """Most tokens of a continuation."""


class Metrics(Section):
    """[metrics] console, metrics.jsonl, TensorBoard."""

    log_freq: PositiveInt = 10
    """Steps between log lines; step 1 and the last step are always logged."""
    enable_tensorboard: bool = True
    """Write TensorBoard events."""
    save_tb_folder: Name = "tb"
    """Their folder inside the run folder."""
    disable_color_printing: bool = False
    """Plain console lines; they are plain too where the output is not a terminal."""


class Profiling(Section):
    """[profiling] traces and memory snapshots."""

    enable_profiling: bool = False
    """Record traces with torch.profiler."""
    save_traces_folder: Name = "profile_traces"
    """Their folder inside the run folder: iteration_N/rankR_trace.json."""
    profile_freq: PositiveInt = 10
    """Steps between traces."""
    profiler_active: PositiveInt = 1
    """Steps recorded in a trace."""
    profiler_warmup: Count = 3
    """Steps traced and thrown away before those."""
    enable_memory_snapshot: bool = False
    """Write CUDA's allocator history every profile_freq steps, and when memory runs out. CUDA only."""
    save_memory_snapshot_folder: Name = "memory_snapshot"
    """Their folder inside the run folder."""


class Comm(Section):
    """[comm] process groups."""

    mode: Literal["default", "fake_backend"] = "default"
    """"fake_backend" is a dry run: one process builds the run of NGPU ranks on tensors without numbers, does one
    micro-batch and one update, tells what that proved. No data, tokenizer or weights are opened, no file written."""
    init_timeout_seconds: Timeout = 300.0
    """Limit of a collective until the first step is done."""
    train_timeout_seconds: Timeout = 100.0
    """Limit of a collective after the first step."""
    trace_buf_size: Count = 20000
    """Entries of NCCL's flight recorder, written when a collective times out; 0 is off."""
    save_traces_folder: Name = "comm_traces"
    """Its folder inside the run folder."""
    grace_seconds: Timeout = 120.0
    """Time the ranks have to save and leave after SIGTERM before the launcher kills them."""

    @field_validator("mode", mode="before")
    @classmethod
    def _known_mode(cls, mode: Any) -> Any:
        if mode == "local_tensor":  # TorchTitan's other one
            raise ValueError('titan_pt has no "local_tensor"; "fake_backend" is its dry run, "default" trains')
        return mode


class Debug(Section):
    """[debug]"""

    seed: int = 42
    """Seed of the initial weights; the data seed derives from it."""
    deterministic: bool = False
    """Only deterministic kernels."""
    deterministic_warn_only: bool = False
    """Warn where a kernel has no deterministic form, instead of failing."""


class Experimental(Section):
    """[experimental]"""

    custom_import: str = ""
    """Python module imported before the config is read; it registers trainers, models or sources of your own."""


class JobConfig(Section):
    """One run. Built by `load_config`; immutable."""

    job: Job = Job()
    model: Model = Model()
    tokenizer: Tokenizer = Tokenizer()
    data: Data = Data()
    training: Training = Training()
    optimizer: Optimizer = Optimizer()
    lr_scheduler: LrScheduler = LrScheduler()
    parallelism: Parallelism = Parallelism()
    activation_checkpoint: ActivationCheckpoint = ActivationCheckpoint()
    compile: Compile = Compile()
    checkpoint: Checkpoint = Checkpoint()
    validation: Validation = Validation()
    metrics: Metrics = Metrics()
    profiling: Profiling = Profiling()
    comm: Comm = Comm()
    debug: Debug = Debug()
    experimental: Experimental = Experimental()

    def dump(self) -> dict[str, dict[str, Any]]:
        """The config as TOML tables: no unset values, no config_file, and of each pair the one that holds."""
        tables = self.model_dump(exclude_none=True, exclude={"job": {"config_file"}})
        for used, other in PAIRS:
            section, key = used.split(".")
            if key in tables.get(section, {}):
                section, key = other.split(".")
                tables[section].pop(key, None)
        return {name: table for name, table in tables.items() if table}

    def to_toml(self) -> str:
        """The resolved config; loading it again gives an equal one."""
        return tomli_w.dumps(self.dump())


# (the one that holds when both have a value, its pair): a higher layer's one replaces the lower layer's other.
PAIRS = (
    ("training.tokens", "training.steps"),
    ("training.global_batch_tokens", "training.global_batch_size"),
    ("sft.epochs", "training.steps"),
    ("sft.epochs", "training.tokens"),
)

__all__ = [
    "PAIRS",
    "ActivationCheckpoint",
    "Checkpoint",
    "Comm",
    "Compile",
    "Count",
    "Data",
    "Debug",
    "Experimental",
    "Fraction",
    "Job",
    "JobConfig",
    "LrScheduler",
    "Metrics",
    "Model",
    "Name",
    "NonNegative",
    "Optimizer",
    "Parallelism",
    "Positive",
    "PositiveInt",
    "Profiling",
    "Section",
    "Source",
    "Timeout",
    "Tokenizer",
    "Training",
    "Validation",
    "ValidationTask",
]
