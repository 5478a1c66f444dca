"""A run in numbers: size, memory, time, disk, money, and whether it fits."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from titan_pt.components.accelerators import GIB, Accelerator
from titan_pt.config.errors import ConfigError
from titan_pt.config.resolve.checks import model_args, tokenizer_size
from titan_pt.config.schema.grpo import GrpoConfig
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.models.transformer import TransformerArgs
from titan_pt.planner.dry_run_step import DryRunResult, dry_run_step
from titan_pt.planner.memory import estimate, moment_bytes, needed_bytes, on_device, shape_of
from titan_pt.planner.memory_tracker import peak_of
from titan_pt.planner.mixture import SourcePlan, plan_sources
from titan_pt.planner.rollouts import Rollouts, plan_rollouts
from titan_pt.planner.storage import Storage, storage
from titan_pt.planner.throughput import SHOWN_MFUS, Pace, pace
from titan_pt.protocols.model_spec import get_model_spec
from titan_pt.protocols.trainer_spec import get_trainer_spec

ASSUMED_MFU = 0.5


@dataclass(frozen=True)
class Target:
    """What the run is planned for."""

    gpu: Accelerator
    num_gpus: int
    mfu: float = ASSUMED_MFU
    mfu_source: str = "assumed"
    price_per_gpu_hour: float | None = None


@dataclass(frozen=True)
class Memory:
    """Of one GPU at the peak of a step, by kind, in bytes."""

    traced: Mapping[str, float]
    """From running the step on tensors without numbers."""
    estimated: Mapping[str, float] | None
    """By the formulas of planner/memory.py; None where the model has none."""
    sampling_bytes: float
    """GRPO: of sampling, when there are no activations."""
    peak_bytes: float
    needed_bytes: float
    """With CUDA's context and what the allocator wastes."""
    available_bytes: float

    @property
    def fits(self) -> bool:
        """Whether a GPU has it."""
        return self.needed_bytes <= self.available_bytes


@dataclass(frozen=True)
class Plan:
    """A run on a target."""

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
    """At the MFUs that are always shown."""
    pace: Pace
    """At the target's."""
    storage: Storage
    sources: tuple[SourcePlan, ...]
    rollouts: Rollouts | None

    @property
    def hours(self) -> float:
        """Of the whole run."""
        return self.pace.hours

    @property
    def fits_time(self) -> bool:
        """Whether it ends before training.max_hours; true where there is no deadline."""
        limit = self.config.training.max_hours
        return limit is None or self.hours <= limit

    @property
    def cost(self) -> float | None:
        """In the unit of the price."""
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
    dry_run = dry_run_step(config, target.num_gpus)
    rollouts = rollouts_of(config, args, target, flops_per_token)
    tokens = dry_run.run_size.tokens
    if rollouts and isinstance(config, GrpoConfig):
        options, length = config.grpo, rollouts.prompt_tokens + config.rollout.max_new_tokens
        tokens = dry_run.run_size.steps * options.prompts_per_step * config.rollout.num_samples * length
    limit = config.training.max_hours
    paces = {mfu: pace(mfu, tokens, flops_per_token, peak, limit) for mfu in {*SHOWN_MFUS, target.mfu}}
    if rollouts:
        paces = {mfu: _grpo_pace(config, args, replace(target, mfu=mfu), tokens, flops_per_token) for mfu in paces}
    return Plan(
        config=config,
        target=target,
        args=args,
        num_parameters=dry_run.num_parameters,
        flops_per_token=flops_per_token,
        dry_run=dry_run,
        memory=_memory(config, args, target, dry_run, rollouts),
        tokens=tokens,
        steps=dry_run.run_size.steps,
        paces=tuple(paces[mfu] for mfu in SHOWN_MFUS),
        pace=paces[target.mfu],
        storage=storage(config, dry_run.num_parameters, dry_run.run_size.steps),
        sources=() if rollouts else tuple(plan_sources(config, tokens)),
        rollouts=rollouts,
    )


def peak_rate(config: JobConfig, target: Target) -> float:
    """Of one GPU in the run's type.

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


def rollouts_of(config: JobConfig, args: Any, target: Target, flops_per_token: float) -> Rollouts | None:
    """What sampling adds; None where the trainer samples nothing, or with an engine of another's."""
    if not isinstance(config, GrpoConfig) or not isinstance(args, TransformerArgs):
        return None
    return plan_rollouts(config, args, target.gpu, target.num_gpus, flops_per_token, target.mfu)


def estimated_kinds(config: JobConfig, args: Any, num_gpus: int) -> dict[str, float] | None:
    """The closed form of a run, with what GRPO keeps beside the engine; None where the model has none."""
    if not isinstance(args, TransformerArgs):
        return None
    offloads = config.training.enable_cpu_offload
    run_size = get_trainer_spec(config.job.trainer).plan_run_size(config, num_gpus)
    if not isinstance(config, GrpoConfig):
        shape = shape_of(config, args, num_gpus, accumulates=run_size.accumulation_steps > 1)
        return on_device(estimate(shape), offloads=offloads)
    from titan_pt.trainers.grpo.dry_run import update_size

    size = update_size(config, num_gpus)
    # One of several micro-batches; a small step's rows may be fewer than training.local_batch_size.
    training = config.training.model_copy(update={"local_batch_size": size.rows})
    config = config.model_copy(update={"training": training})
    shape = shape_of(config, args, num_gpus, accumulates=size.accumulates, scored_tokens=size.scored_tokens)
    kinds = estimate(shape)
    if config.grpo.kl_coef > 0:
        kinds["reference"] = 4 * args.num_parameters / shape.shards
    return on_device(kinds, offloads=offloads)


def _memory(config: JobConfig, args: Any, target: Target, dry_run: DryRunResult, rollouts: Rollouts | None) -> Memory:
    kinds: dict[str, float] = dict(dry_run.memory)
    kinds["optimizer"] *= moment_bytes(config) / 8  # traced with moments of 32 bits
    kinds = on_device(kinds, offloads=config.training.enable_cpu_offload)
    estimated = estimated_kinds(config, args, target.num_gpus)
    if estimated is not None and rollouts and "rollout_engine" in kinds:  # another engine than ours was not tried
        estimated["rollout_engine"] = rollouts.engine_bytes
    peak = peak_of(kinds, dry_run.sampling_bytes)
    return Memory(
        traced=kinds,
        estimated=estimated,
        sampling_bytes=dry_run.sampling_bytes,
        peak_bytes=peak,
        needed_bytes=needed_bytes(peak),
        available_bytes=target.gpu.memory_gib * GIB,
    )


def _grpo_pace(config: JobConfig, args: Any, target: Target, tokens: int, flops_per_token: float) -> Pace:
    """Tokens are those that are trained on."""
    rollouts = rollouts_of(config, args, target, flops_per_token)
    assert rollouts is not None
    hours = config.training.steps * rollouts.step_seconds / 3600
    limit = config.training.max_hours
    return Pace(target.mfu, tokens / hours / 3600, hours, tokens * limit / hours if limit else None)


def as_json(plan: Plan) -> dict[str, Any]:
    """What `--json` prints; sizes in bytes."""
    return {
        "config_file": plan.config.job.config_file,
        "trainer": plan.config.job.trainer,
        "gpu": plan.target.gpu.name,
        "num_gpus": plan.target.num_gpus,
        "mesh": plan.dry_run.mesh,
        "parameters": plan.num_parameters,
        "parameters_without_embedding": plan.num_parameters - getattr(plan.args, "num_embedding_parameters", 0),
        "flops_per_token": plan.flops_per_token,
        "batch": dataclasses.asdict(plan.dry_run.run_size),
        "memory": {
            "traced": dict(plan.memory.traced),
            "estimated": plan.memory.estimated and dict(plan.memory.estimated),
            "sampling_bytes": plan.memory.sampling_bytes,
            "peak_bytes": plan.memory.peak_bytes,
            "needed_bytes": plan.memory.needed_bytes,
            "available_bytes": plan.memory.available_bytes,
        },
        "mfu": plan.target.mfu,
        "mfu_source": plan.target.mfu_source,
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
