"""Ways to use memory, by formula: what makes a run fit, and what makes it fastest."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from titan_pt.components.accelerators import GIB
from titan_pt.config.errors import ConfigError
from titan_pt.config.run_size import divisors, global_rows, plan_run_size
from titan_pt.config.schema.grpo import GrpoConfig
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.planner.memory import needed_bytes
from titan_pt.planner.plan import Plan, Target, estimated_kinds, rollouts_of

# (activation_checkpoint.mode, selective_ac_option, operations beside a step's): the forward is a third of a step.
_CHECKPOINTS = (("none", "2", 0.0), ("selective", "op", 0.02), ("selective", "2", 1 / 6), ("full", "2", 1 / 3))
# Tokens of a micro-batch at which half of the time is overhead of kernels: a rule of thumb, not measured on a GPU.
_HALF_SPEED_TOKENS = 512
_GATHER, _TURN = 0.01, 0.02
_MOST_ROWS = 256


@dataclass(frozen=True)
class Choice:
    """One way, in keys of the config."""

    settings: tuple[tuple[str, Any], ...]
    needed_bytes: float
    slowness: float
    """Time of a token relative to no overhead and no recomputation: a rule of thumb, for comparing."""
    fits: bool

    @property
    def sections(self) -> frozenset[str]:
        """What kinds of keys it changes."""
        return frozenset(name.split(".")[0] for name, _ in self.settings)

    @property
    def flags(self) -> str:
        """For the command line."""
        return " ".join(f"--{name} {value}" for name, value in self.settings)


def fastest(plan: Plan) -> Choice | None:
    """Of local batch size, activation checkpointing, resharding and rows sampled together the fastest that fits."""
    return min((choice for choice in choices(plan) if choice.fits), key=lambda choice: choice.slowness, default=None)


def cheapest_changes(plan: Plan, count: int = 3) -> list[Choice]:
    """Ways to make it fit, each of other sections of the config, single ones first, then the fastest first."""
    found = [choice for choice in (*choices(plan), *_other_ways(plan)) if choice.fits and choice.settings]
    best: dict[frozenset[str], Choice] = {}
    for choice in sorted(found, key=lambda choice: choice.slowness):
        best.setdefault(choice.sections, choice)
    # One that changes more than another needs to is a way too, but the last to be told.
    ranked = sorted(best.values(), key=lambda choice: (any(other < choice.sections for other in best), choice.slowness))
    return ranked[:count]


def apply(config: JobConfig, choice: Choice) -> JobConfig:
    """The config with its settings."""
    return _with(config, dict(choice.settings))


def choices(plan: Plan) -> Iterator[Choice]:
    """All combinations, with the keys that differ from the config's."""
    reshards = (
        ("default", "never") if plan.target.num_gpus > 1 else (plan.config.parallelism.fsdp_reshard_after_forward,)
    )
    space = itertools.product(_local_sizes(plan), _CHECKPOINTS, reshards, _sampled_together(plan))
    for rows, checkpoint, reshard, (turns, sampled) in space:
        mode, option, recomputed = checkpoint
        wanted = {
            "training.local_batch_size": rows,
            "activation_checkpoint.mode": mode,
            "parallelism.fsdp_reshard_after_forward": reshard,
        }
        if mode == "selective":
            wanted["activation_checkpoint.selective_ac_option"] = option
        wanted |= sampled
        gathers = _GATHER if reshard != "never" and plan.target.num_gpus > 1 else 0.0
        overhead = _HALF_SPEED_TOKENS / (rows * plan.config.training.seq_len)
        choice = _choice(plan, wanted, plan.target, 1 + recomputed + gathers + overhead + _TURN * turns)
        if choice:
            yield choice


def _other_ways(plan: Plan) -> Iterator[Choice]:
    """What is not searched over: sharding over more ranks, moments of 8 bits, states in CPU memory."""
    target = plan.target
    overhead = _HALF_SPEED_TOKENS / (plan.config.training.local_batch_size * plan.config.training.seq_len)
    replicate = "parallelism.data_parallel_replicate_degree"
    ways = (
        ((replicate, 1), 2 * _GATHER),
        (("optimizer.name", "AdamW8bit"), 0.03),
        (("training.enable_cpu_offload", "true"), 1.0),
    )
    for (name, value), slower in ways:
        choice = _choice(plan, {name: value}, target, 1 + slower + overhead)
        if choice:
            yield choice
    for times in (2, 4, 8):
        more = replace(target, num_gpus=times * target.num_gpus)
        choice = _choice(plan, {}, more, 1 + 0.1 * times + overhead)  # quick, and paid for
        if choice:
            yield replace(choice, settings=(("num_gpus", more.num_gpus),))


def _choice(plan: Plan, wanted: dict[str, Any], target: Target, slowness: float) -> Choice | None:
    config = plan.config
    settings = {name: value for name, value in wanted.items() if _now(config, name) != value}
    if "training.local_batch_size" in settings and not global_rows(config) and not _is_grpo(config):
        settings["training.global_batch_size"] = plan.dry_run.run_size.rows  # else it would follow the local one
    changed = _with(config, settings)
    try:
        kinds = estimated_kinds(changed, plan.args, target.num_gpus)
    except ConfigError:  # the GPUs cannot share a batch cut so
        return None
    if kinds is None:
        return None
    peak = sum(kinds.values())
    rollouts = rollouts_of(changed, plan.args, target, plan.flops_per_token)
    if rollouts:
        states = sum(kinds.get(kind, 0.0) for kind in ("parameters", "optimizer", "reference"))
        peak = max(peak, states + rollouts.kv_cache_bytes) + rollouts.engine_bytes
    needed = needed_bytes(peak)
    return Choice(tuple(settings.items()), needed, slowness, needed <= target.gpu.memory_gib * GIB)


def _local_sizes(plan: Plan) -> list[int]:
    if _is_grpo(plan.config):
        return [2**n for n in range(9)]
    return [size for size in divisors(plan.dry_run.run_size.rows_per_rank) if size <= _MOST_ROWS]


def _sampled_together(plan: Plan) -> list[tuple[int, dict[str, int]]]:
    """(halvings, the key that does it) of the completions that are decoded together."""
    if plan.rollouts is None:
        return [(0, {})]
    return [(turns, {"rollout.max_rows": plan.rollouts.rows >> turns} if turns else {}) for turns in range(4)]


def _is_grpo(config: JobConfig) -> bool:
    return isinstance(config, GrpoConfig)


def _now(config: JobConfig, name: str) -> Any:
    section, key = name.split(".")
    value = getattr(getattr(config, section), key)
    return "default" if value == "always" else value


def _with(config: JobConfig, settings: dict[str, Any]) -> JobConfig:
    tables: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        section, key = name.split(".")
        tables.setdefault(section, {})[key] = value == "true" if value in ("true", "false") else value
    if "global_batch_size" in tables.get("training", {}):
        tables["training"]["global_batch_tokens"] = None
    sections = {name: getattr(config, name).model_copy(update=keys) for name, keys in tables.items()}
    return config.model_copy(update=sections)


def gpus_in_time(plan: Plan, most: int = 1024) -> int | None:
    """The fewest GPUs of this kind that can share the batch and end in training.max_hours at the plan's MFU.

    None where there are none, no deadline, or where sampling takes part of the time, which more GPUs need not halve.
    """
    limit = plan.config.training.max_hours
    if limit is None or plan.rollouts:
        return None
    for count in range(1, most + 1):
        if plan.hours * plan.target.num_gpus / count > limit:
            continue
        try:
            plan_run_size(plan.config, count)
        except ConfigError:
            continue
        return count
    return None
