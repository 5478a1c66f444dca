"""A run in numbers: size, memory, time, disk, money, and whether it fits."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from titan_pt.components.accelerators import GIB, Accelerator
from titan_pt.config.errors import ConfigError
from titan_pt.config.resolve.checks import model_args
from titan_pt.config.schema.grpo import GrpoConfig
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.config.schema.training import BUILTIN_OPTIMIZERS
from titan_pt.models.transformer import TransformerArgs
from titan_pt.planner.dry_run_step import DryRunResult, dry_run_step
from titan_pt.planner.memory import moment_bytes, needed_bytes, on_device, peak_of
from titan_pt.planner.mixture import SourcePlan, plan_sources
from titan_pt.planner.rollouts import Rollouts, plan_rollouts, teacher_share
from titan_pt.planner.roofline import StepTime, known_rates, step_time
from titan_pt.planner.sized_tokenizer import tokenizer_size
from titan_pt.protocols.model_spec import get_model_spec
from titan_pt.trainers.grpo.dry_run import row_slots, update_samples, update_size

ASSUMED_MFU = 0.5
SHOWN_MFUS = (0.4, 0.5, 0.6)


@dataclass(frozen=True)
class Target:
    """The GPUs that a run is planned for."""

    gpu: Accelerator
    num_gpus: int
    mfu: float | None = None
    """The MFU to plan with; None for a roofline where the card's rates are known, else for ASSUMED_MFU."""
    mfu_source: str = "assumed"
    price_per_gpu_hour: float | None = None


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU."""

    by_kind: Mapping[str, float]
    """Bytes at the peak of a step, from running it on tensors without numbers."""
    sampling_bytes: float
    """GRPO: memory of sampling, when there are no activations."""
    peak_bytes: float
    """The largest memory of a step, or of sampling."""
    needed_bytes: float
    """The peak with CUDA's context and what the allocator wastes."""
    available_bytes: float
    """Memory of the GPU that a program can have."""

    @property
    def fits(self) -> bool:
        """Whether a GPU has it."""
        return self.needed_bytes <= self.available_bytes


@dataclass(frozen=True)
class Pace:
    """A run at one utilisation."""

    mfu: float
    tokens_per_second: float
    """Tokens a second of all devices together."""
    hours: float
    tokens_in_max_hours: float | None
    """Tokens that training.max_hours allows; None without it."""


@dataclass(frozen=True)
class Storage:
    """Disk of one run."""

    checkpoint_bytes: float
    """Bytes of one checkpoint: weights in float32, Adam's moments, a reference and averages if there are such."""
    kept: int
    """Checkpoints that stay."""
    disk_bytes: float
    """The most at a time: the checkpoints kept, one under way, and the Hugging Face folders."""


@dataclass(frozen=True)
class Plan:
    """A run on a target: size, memory, time, disk and sources."""

    config: JobConfig
    target: Target
    args: Any
    num_parameters: int
    flops_per_token: float
    dry_run: DryRunResult
    memory: Memory
    tokens: int
    steps: int
    paces: tuple[Pace, ...]
    """Speed at each of SHOWN_MFUS."""
    pace: Pace
    """Speed by the roofline, or at the target's MFU."""
    step_time: StepTime | None
    """What takes the time of an update by the roofline; None where an MFU is assumed, measured or given."""
    storage: Storage
    sources: tuple[SourcePlan, ...]
    rollouts: Rollouts | None

    @property
    def mfu_source(self) -> str:
        """Where the MFU comes from."""
        rates = known_rates(self.target.gpu) if self.step_time else None
        return f"roofline, {rates.source}" if rates else self.target.mfu_source

    @property
    def update_flops(self) -> int:
        """Operations of a rank in the matrix products of one update of the optimizer."""
        return self.dry_run.operations.update_flops if self.dry_run.operations else 0

    @property
    def hours(self) -> float:
        """Hours of the whole run."""
        return self.pace.hours

    @property
    def fits_time(self) -> bool:
        """Whether it ends before training.max_hours; true where there is no deadline."""
        limit = self.config.training.max_hours
        return limit is None or self.hours <= limit

    @property
    def cost(self) -> float | None:
        """Price of the whole run; None without a price."""
        price = self.target.price_per_gpu_hour
        return None if price is None else price * self.target.num_gpus * self.hours


def make_plan(config: JobConfig, target: Target) -> Plan:
    """The plan of a config, from the config alone.

    Raises:
        ConfigError: the GPUs cannot share the batch, or the GPU cannot compute in the run's type.
    """
    spec = get_model_spec(config.model.name)
    args = model_args(config, spec, tokenizer_size(config))
    flops_per_token = spec.flops_per_token(args, config.training.seq_len)
    peak = peak_rate(config, target) * target.num_gpus
    dry_run = dry_run_step(config, target.num_gpus, counts=True, card_gib=target.gpu.memory_gib)
    update = None
    if target.mfu is None and known_rates(target.gpu) is not None:
        update = update_time(config, target, dry_run)
        target = replace(target, mfu=update_mfu(config, dry_run, update, flops_per_token, peak))
    mfu = target.mfu or ASSUMED_MFU
    target = replace(target, mfu=mfu)
    rollouts = rollouts_of(config, args, target, flops_per_token)
    tokens = dry_run.run_size.tokens
    if rollouts and isinstance(config, GrpoConfig):
        options, length = config.grpo, rollouts.prompt_tokens + config.rollout.completion_tokens
        tokens = dry_run.run_size.steps * options.prompts_per_step * config.rollout.num_samples * length
    limit = config.training.max_hours
    paces = {mfu: pace(mfu, tokens, flops_per_token, peak, limit) for mfu in {*SHOWN_MFUS, mfu}}
    if rollouts:
        paces = {mfu: _grpo_pace(config, args, replace(target, mfu=mfu), tokens, flops_per_token) for mfu in paces}
    return Plan(
        config=config,
        target=target,
        args=args,
        num_parameters=dry_run.num_parameters,
        flops_per_token=flops_per_token,
        dry_run=dry_run,
        memory=memory_of(config, target, dry_run),
        tokens=tokens,
        steps=dry_run.run_size.steps,
        paces=tuple(paces[mfu] for mfu in SHOWN_MFUS),
        pace=paces[mfu],
        step_time=update,
        storage=storage(config, dry_run.num_trained, dry_run.run_size.steps, _own_state_bytes(config, dry_run)),
        sources=() if rollouts else tuple(plan_sources(config, tokens)),
        rollouts=rollouts,
    )


def update_time(config: JobConfig, target: Target, dry_run: DryRunResult) -> StepTime:
    """Time of the micro-batches and the update of a step (of GRPO: of one of its updates) by a roofline."""
    assert dry_run.operations is not None
    micro_batches: float = dry_run.run_size.accumulation_steps
    if isinstance(config, GrpoConfig):
        micro_batches = update_samples(config) / update_size(config, target.num_gpus).samples
    compiled = config.compile.is_on("cuda")
    return step_time(dry_run.operations, target.gpu, micro_batches, compiled=compiled, sums_once=dry_run.sums_once)


def update_mfu(
    config: JobConfig, dry_run: DryRunResult, update: StepTime, flops_per_token: float, flops_per_second: float
) -> float:
    """The MFU of such an update on devices of that peak together.

    Of GRPO's rows padding counts for nothing, and the reference's forward, which is part of the update, for a third,
    the teacher's by its own size.
    """
    tokens: float = dry_run.run_size.tokens_per_step
    if isinstance(config, GrpoConfig):
        forwards = (1 / 3 if config.grpo.kl_coef > 0 else 0) + teacher_share(config, flops_per_token)
        tokens = update_samples(config) * row_slots(config) * (1 + forwards)
    return tokens * flops_per_token / flops_per_second / update.total


def peak_rate(config: JobConfig, target: Target) -> float:
    """Peak operations a second of one GPU in the run's type.

    Raises:
        ConfigError: it has no units for it.
    """
    dtype = config.training.mixed_precision_param
    if dtype not in target.gpu.flops:
        raise ConfigError(
            f"--gpu {target.gpu.name!r}: cannot compute in training.mixed_precision_param = {dtype!r}; set "
            f"{' or '.join(repr(name) for name in target.gpu.flops)}, or choose another GPU"
        )
    return target.gpu.flops[dtype]


def pace(mfu: float, tokens: int, flops_per_token: float, flops_per_second: float, max_hours: float | None) -> Pace:
    """The pace of a run of so many tokens.

    Args:
        flops_per_second: peak of all devices together.
    """
    rate = mfu * flops_per_second / flops_per_token
    return Pace(mfu, rate, tokens / rate / 3600, rate * 3600 * max_hours if max_hours else None)


def _own_state_bytes(config: JobConfig, dry_run: DryRunResult) -> int | None:
    return None if config.optimizer.name in BUILTIN_OPTIMIZERS else dry_run.state_bytes


def storage(config: JobConfig, num_parameters: int, steps: int, state_bytes: int | None = None) -> Storage:
    """The disk that `[checkpoint]` needs.

    Args:
        num_parameters: those that are trained, which a checkpoint holds.
        state_bytes: of an optimizer that is not a built-in one.
    """
    options = config.checkpoint
    has_reference = isinstance(config, GrpoConfig) and config.grpo.kl_coef > 0 and not config.lora.enable
    states = num_parameters * moment_bytes(config) if state_bytes is None else state_bytes
    copies = 1 + has_reference + (config.training.ema_decay is not None)
    whole = states + 4 * num_parameters * copies
    if not options.enable or options.load_only:
        return Storage(whole, 0, 0.0)
    saved = -(-steps // options.interval)
    kept = min(saved, options.keep_latest_k) if options.keep_latest_k else saved
    exports = -(-steps // options.export_hf_interval) if options.export_hf_interval else 0
    under_way = 1 if saved > kept else 0
    return Storage(whole, kept, (kept + under_way) * whole + exports * 4 * num_parameters)


def rollouts_of(config: JobConfig, args: Any, target: Target, flops_per_token: float) -> Rollouts | None:
    """The plan of sampling; None for other trainers than GRPO and for other models than the transformer."""
    if not isinstance(config, GrpoConfig) or not isinstance(args, TransformerArgs):
        return None
    return plan_rollouts(config, args, target.gpu, target.num_gpus, flops_per_token, target.mfu or ASSUMED_MFU)


def memory_of(config: JobConfig, target: Target, dry_run: DryRunResult) -> Memory:
    """The memory of one GPU from a dry run of the config, which leaves out CPU offload and moments of 8 bits."""
    kinds: dict[str, float] = dict(dry_run.memory)
    if config.optimizer.name == "AdamW8bit":
        kinds["optimizer"] *= moment_bytes(config) / 8
    kinds = on_device(kinds, offloads=config.training.enable_cpu_offload)
    peak = peak_of(kinds, dry_run.sampling_bytes)
    return Memory(
        by_kind=kinds,
        sampling_bytes=dry_run.sampling_bytes,
        peak_bytes=peak,
        needed_bytes=needed_bytes(peak),
        available_bytes=target.gpu.memory_gib * GIB,
    )


def _grpo_pace(config: JobConfig, args: Any, target: Target, tokens: int, flops_per_token: float) -> Pace:
    """The pace of a GRPO run, in tokens that are trained on."""
    rollouts = rollouts_of(config, args, target, flops_per_token)
    assert rollouts is not None
    hours = config.training.steps * rollouts.step_seconds / 3600
    limit = config.training.max_hours
    return Pace(target.mfu or ASSUMED_MFU, tokens / hours / 3600, hours, tokens * limit / hours if limit else None)


def as_json(plan: Plan) -> dict[str, Any]:
    """The object that `--json` prints; sizes in bytes."""
    return {
        "config_file": plan.config.job.config_file,
        "trainer": plan.config.job.trainer,
        "gpu": plan.target.gpu.name,
        "num_gpus": plan.target.num_gpus,
        "mesh": plan.dry_run.mesh,
        "parameters": plan.num_parameters,
        "parameters_without_embedding": plan.num_parameters - getattr(plan.args, "num_embedding_parameters", 0),
        "flops_per_token": plan.flops_per_token,
        "update_flops": plan.update_flops,
        "batch": dataclasses.asdict(plan.dry_run.run_size),
        "memory": {
            "traced": dict(plan.memory.by_kind),
            "sampling_bytes": plan.memory.sampling_bytes,
            "peak_bytes": plan.memory.peak_bytes,
            "needed_bytes": plan.memory.needed_bytes,
            "available_bytes": plan.memory.available_bytes,
        },
        "mfu": plan.pace.mfu,
        "mfu_source": plan.mfu_source,
        "time_model": "roofline" if plan.step_time else "mfu",
        "step_time": plan.step_time and dataclasses.asdict(plan.step_time),
        "tokens_per_second": plan.pace.tokens_per_second,
        "paces": [dataclasses.asdict(pace) for pace in plan.paces],
        "steps": plan.steps,
        "step_seconds": plan.hours * 3600 / plan.steps,
        "tokens": plan.tokens,
        "hours": plan.hours,
        "max_hours": plan.config.training.max_hours,
        "tokens_in_max_hours": plan.pace.tokens_in_max_hours,
        "fits_memory": plan.memory.fits,
        "fits_time": plan.fits_time,
        "checkpoint_bytes": plan.storage.checkpoint_bytes,
        "checkpoints_kept": plan.storage.kept,
        "disk_bytes": plan.storage.disk_bytes,
        "sources": [{**dataclasses.asdict(source), "epochs": source.epochs} for source in plan.sources],
        "rollouts": plan.rollouts and {**dataclasses.asdict(plan.rollouts), "step_seconds": plan.rollouts.step_seconds},
        "cost": plan.cost,
    }
