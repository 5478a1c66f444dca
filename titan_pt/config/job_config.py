"""The typed sections of a run's TOML file. A field's docstring is its help text.

Names follow TorchTitan's where the thing is the same. A trainer spec adds sections of its own and a model spec adds
its architecture fields to `[model]` (see `manager.config_class`).
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from titan_pt.config.values import Seconds, Size, check_storable

Count = Annotated[int, Field(ge=0)]
PositiveInt = Annotated[int, Field(gt=0)]
AllOrCount = Annotated[int, Field(ge=-1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1)]
Timeout = Annotated[Seconds, Field(gt=0, le=365 * 86400)]

_MAX_BATCH = 2**40  # far above any batch, and its divisors are still quick to list


class Section(BaseModel):
    """One TOML table: typed, immutable, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    @field_validator("*", mode="after")
    @classmethod
    def _storable(cls, value: Any) -> Any:
        for item in value if isinstance(value, list) else [value]:
            check_storable(item)
        return value


class Job(Section):
    """[job] what runs and where its results go."""

    config_file: str | None = None
    """TOML file of this run."""
    trainer: str = "pretrain"
    """Registered trainer spec: "pretrain" or a name brought by experimental.custom_import."""
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
    """How a row becomes a text: "text" (the column text_field), "medqa", "gsm8k", or a registered name. Unset: that of
    a built-in name, else "text"."""
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
    """A run that gets no data for so long saves a checkpoint and ends with exit code 75."""


class Training(Section):
    """[training] batch, length of the run, precision."""

    local_batch_size: PositiveInt = 8
    """Rows of one micro-batch on one rank."""
    global_batch_size: Annotated[int, Field(ge=-1, le=_MAX_BATCH)] = -1
    """Rows of one optimizer step over all ranks; -1: local_batch_size x data ranks. More: gradients accumulate."""
    global_batch_tokens: Annotated[Size, Field(gt=0, le=_MAX_BATCH)] | None = None
    """The same in tokens (524288 with seq_len 2048 is 256 rows); a pair with global_batch_size: give one."""
    seq_len: Annotated[Size, Field(gt=0)] = 2048
    """Tokens of a row that the model reads."""
    steps: Annotated[Size, Field(gt=0)] = 10000
    """Optimizer steps of the run; a pair with `tokens`: give one."""
    tokens: Annotated[Size, Field(gt=0)] | None = None
    """Length of the run in tokens ("50B"), rounded up to whole steps; a pair with `steps`."""
    max_norm: Positive = 1.0
    """Gradients are clipped to this global L2 norm."""
    z_loss_coef: NonNegative = 0.0
    """Weight of the z-loss, the mean squared log of the softmax's normaliser; 0 is off."""
    document_mask: bool = False
    """Documents packed in one row do not attend to each other and each counts its positions from 0."""
    max_skipped_steps: Count = 10
    """Steps with a non-finite loss or gradient that are skipped before the run gives up with exit code 70."""
    enable_cpu_offload: bool = False
    """Keep parameters, gradients and optimizer state in CPU memory between uses."""
    dtype: Literal["float32"] = "float32"
    """Type of the master weights and of the optimizer state."""
    mixed_precision_param: Literal["float32", "bfloat16"] = "bfloat16"
    """Type in which parameters are gathered and the forward and backward computed."""
    mixed_precision_reduce: Literal["float32", "bfloat16"] = "float32"
    """Type of the gradient reduction between ranks."""
    gc_freq: PositiveInt = 50
    """Steps between Python garbage collections; in between the collector is off, so that ranks do not wait for one."""
    gc_debug: bool = False
    """Log what each collection freed."""


class Optimizer(Section):
    """[optimizer]"""

    name: Literal["AdamW"] = "AdamW"
    """Optimizer."""
    lr: Positive = 8e-4
    """Peak learning rate."""
    beta1: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """Decay of the gradient average."""
    beta2: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.95
    """Decay of the squared-gradient average."""
    eps: Positive = 1e-8
    """Added to the denominator."""
    weight_decay: NonNegative = 0.1
    """Decoupled weight decay of matrices; norms and embeddings have none."""
    implementation: Literal["fused", "foreach", "for-loop"] = "fused"
    """"fused" skips a bad step on the device; the others read a flag on the host at every step."""


class LrScheduler(Section):
    """[lr_scheduler] warm-up, then decay to min_lr_factor."""

    warmup_steps: Count = 200
    """Linear warm-up; shortened to the run's length with a warning."""
    total_steps: PositiveInt | None = None
    """Steps the schedule spans. Unset: the run's steps."""
    decay_ratio: Fraction | None = None
    """Share of the steps that decay, after a constant phase (WSD). Unset: decay starts right after the warm-up."""
    decay_type: Literal["linear", "sqrt", "cosine"] = "linear"
    """Shape of the decay."""
    min_lr_factor: Fraction = 0.0
    """Learning rate of the last step, relative to the peak."""


class Parallelism(Section):
    """[parallelism] data parallelism with FSDP2."""

    data_parallel_replicate_degree: PositiveInt = 1
    """Copies of the sharded model (HSDP when above 1)."""
    data_parallel_shard_degree: Annotated[int, Field(ge=-1)] = -1
    """Ranks that share one copy; -1: all that are left."""
    fsdp_reshard_after_forward: Literal["default", "always", "never"] = "default"
    """"always" frees gathered parameters after the forward; "never" saves a gather for memory. "default" is always."""


class ActivationCheckpoint(Section):
    """[activation_checkpoint] recompute activations in the backward to save memory."""

    mode: Literal["selective", "full", "none"] = "selective"
    """"full": every block; "selective": as selective_ac_option says; "none"."""
    selective_ac_option: str = "2"
    """"op": save the outputs of matrix products and attention, recompute the rest; an integer n: every n-th block."""


class Compile(Section):
    """[compile] torch.compile."""

    enable: bool = False
    """Compile each block of the model, and the loss."""
    components: list[Literal["model", "loss"]] = ["model", "loss"]
    """What is compiled."""
    backend: Name = "inductor"
    """Backend of torch.compile."""


class Checkpoint(Section):
    """[checkpoint] whole, verified, resumable steps."""

    enable: bool = True
    """Save checkpoints and resume from the newest whole one."""
    folder: Name = "checkpoint"
    """Folder inside the run folder."""
    interval: PositiveInt = 500
    """Steps between checkpoints; the last step is always saved."""
    initial_load_path: Name | None = None
    """Starting weights when the run folder holds no checkpoint: a run folder, its checkpoint folder or one step-N."""
    async_mode: Literal["disabled", "async", "async_with_pinned_mem"] = "disabled"
    """Write in the background; training waits only for the copy to CPU memory."""
    keep_latest_k: Count = 10
    """Whole checkpoints kept; 0 keeps all."""
    load_step: AllOrCount = -1
    """Step to resume from; -1: the newest whole one."""
    exclude_from_loading: list[Literal["optimizer", "lr_scheduler", "data"]] = []
    """State that a resume leaves at its start: the way out when the optimizer or the data of a run has to change."""
    enable_first_step_checkpoint: bool = False
    """Save step 1 too, to see early that saving works."""
    load_only: bool = False
    """Load, never save."""


class Validation(Section):
    """[validation] loss on documents that are never trained on."""

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
            if key in tables[section]:
                del tables[section][other.split(".")[1]]
        return {name: table for name, table in tables.items() if table}


# (the one that holds when both have a value, its pair): a higher layer's one replaces the lower layer's other.
PAIRS = (
    ("training.tokens", "training.steps"),
    ("training.global_batch_tokens", "training.global_batch_size"),
)
