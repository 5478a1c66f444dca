"""The sections that say how the weights are moved: batch, optimizer, schedule, parallelism, memory, compilation."""

from typing import Annotated, Literal

from pydantic import Field

from titan_pt.config.schema.section import (
    Count,
    Fraction,
    Name,
    NonNegative,
    PathName,
    Positive,
    PositiveInt,
    Section,
    Switch,
    switched_on,
)
from titan_pt.config.schema.values import CountText, Hours, Size

BUILTIN_OPTIMIZERS = ("AdamW", "AdamW8bit")
_MAX_BATCH = 2**40  # far above any batch, and its divisors are still quick to list


class Training(Section):
    """[training] batch, length of the run, precision."""

    local_batch_size: PositiveInt = 8
    """Rows of one micro-batch on one rank; where the global batch leaves a rank fewer, all of these."""
    global_batch_size: Annotated[int, Field(ge=-1, le=_MAX_BATCH)] = -1
    """Rows of one optimizer step over all ranks; -1: local_batch_size x data ranks. More: gradients accumulate."""
    global_batch_tokens: Annotated[Size, Field(gt=0, le=_MAX_BATCH)] | None = None
    """Tokens of one optimizer step over all ranks (524288 with seq_len 2048 is 256 rows); a pair with
    global_batch_size: give one."""
    seq_len: Annotated[Size, Field(gt=0)] = 2048
    """Tokens of a row that the model reads."""
    steps: Annotated[Size, Field(gt=0)] = 10000
    """Optimizer steps of the run; a pair with `tokens`: give one."""
    tokens: Annotated[Size, Field(gt=0)] | None = None
    """Length of the run in tokens ("50B"), rounded up to whole steps; a pair with `steps`."""
    max_hours: Annotated[Hours, Field(gt=0, le=100_000)] | None = None
    """Time from the first start to the deadline, restarts included ("72h", "3d"): the run measures its speed and
    ends, decayed and saved, before it. Unset: none. It ends at `steps` or `tokens` if those come first."""
    max_norm: Positive = 1.0
    """Gradients are clipped to this global L2 norm."""
    z_loss_coef: NonNegative = 0.0
    """Weight of the z-loss, the mean squared log of the softmax's normaliser; 0 is off."""
    loss_chunk_tokens: Count = 0
    """Tokens whose logits are held at a time; 0: in float32 2% of the device's memory, on a CPU 256 MiB."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay a step of an exponential moving average of the weights (0.999), kept and saved beside them. Unset: none."""
    document_mask: bool = False
    """Documents packed in one row do not attend to each other and each counts its positions from 0."""
    on_bad_step: Literal["skip", "rewind", "stop"] = "skip"
    """A step whose loss or gradient is not finite, or whose loss is a spike, is never applied. "skip": go on behind it;
    "rewind": go back to the last saved step and train without its documents; "stop": exit code 70."""
    max_skipped_steps: Count = 10
    """Steps that are skipped within bad_step_window before the run gives up with exit code 70."""
    max_rewinds: Count = 3
    """Rewinds within bad_step_window before exit code 70; the last one leaves out all that was read since that step."""
    bad_step_window: PositiveInt = 1000
    """Steps over which skipped ones and rewinds are counted."""
    spike_zscore: Annotated[float, Field(ge=2)] | None = None
    """A loss so many robust standard deviations above the median of the last ones is a bad step. Unset: off."""
    spike_window: Annotated[int, Field(ge=8, le=10_000)] = 128
    """Losses of good steps that a spike is measured by; half as many are needed before there can be one."""
    black_boxes: Count = 16
    """Bad steps of which blackbox/ keeps texts, norms and optimizer state (tools.blackbox); of more, names alone."""
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

    name: str = "AdamW"
    """"AdamW", "AdamW8bit" (torchao; matrices' moments in 8 bits, a quarter of the memory), "Muon" (with the keys of
    [optimizer.muon]), or a name brought by experimental.custom_import (`register_optimizer`)."""
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
    """Kernels of AdamW. "fused" skips a bad step on the device; the others, and AdamW8bit, read a flag on
    the host at each."""


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
    """"always" frees gathered parameters after each use. "never" gathers them once a step, and sums gradients over the
    ranks once a step where mixed_precision_reduce is float32. "default": never where they take at most 2 GiB."""


class ActivationCheckpoint(Section):
    """[activation_checkpoint] recompute activations in the backward to save memory."""

    mode: Literal["selective", "full", "none"] = "selective"
    """"full": every block; "selective": as selective_ac_option says; "none"."""
    selective_ac_option: CountText = "2"
    """"op": save the outputs of matrix products and attention, recompute the rest; an integer n: every n-th block."""


class Compile(Section):
    """[compile] torch.compile."""

    enable: Switch = False
    """Compile each block of the model, and the loss. "auto": on CUDA."""
    components: list[Literal["model", "loss"]] = ["model", "loss"]
    """Parts that are compiled."""
    backend: Name = "inductor"
    """Backend of torch.compile."""
    cache_dir: PathName | None = None
    """Folder that keeps what was compiled, for later starts on equal machines; a damaged one is thrown away."""

    def is_on(self, device_type: str) -> bool:
        """Whether a run on this kind of device compiles."""
        return switched_on(self.enable, device_type)


class Float8(Section):
    """[quantize.linear.float8] products of the blocks' linear layers in 8 bits (torchao), on H100 and later."""

    recipe_name: Literal["tensorwise", "rowwise", "rowwise_with_gw_hp"] | None = None
    """One scale a tensor ("tensorwise", as unset) or a row; "rowwise_with_gw_hp" leaves the weights' gradients out."""
    filter_fqns: list[Name] = []
    """Layers to leave out, by parts of their names ("layers.0.", "down_proj"); so is a size no multiple of 16."""
    enable_fsdp_float8_all_gather: bool = False
    """Gather the weights in 8 bits; with one scale a tensor."""
    precompute_float8_dynamic_scale_for_fsdp: bool = False
    """Reduce the scales of all weights at once after each step; with enable_fsdp_float8_all_gather."""
    emulate: bool = False
    """Round to 8 bits, but multiply in the usual type, slowly and on any device: for tests."""


class LinearQuantization(Section):
    """[quantize.linear] what linear layers compute in."""

    float8: Float8 | None = None


class Quantize(Section):
    """[quantize] what layers compute in; model.converters says which table is on."""

    linear: LinearQuantization = LinearQuantization()
