"""Ways to use memory: what makes a run fit, and what makes it fastest. Each way is tried by a dry run of its own."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from titan_pt.config.errors import ConfigError
from titan_pt.config.run_size import divisors, global_rows, plan_run_size
from titan_pt.config.schema.grpo import GrpoConfig
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.planner.dry_run_step import DryRunResult, dry_run_step
from titan_pt.planner.memory import staying_bytes
from titan_pt.planner.plan import Memory, Plan, Target, memory_of, rollouts_of, update_time
from titan_pt.trainers.grpo.dry_run import update_samples

Settings = dict[str, Any]

_ROWS, _MODE, _OPTION = (
    "training.local_batch_size",
    "activation_checkpoint.mode",
    "activation_checkpoint.selective_ac_option",
)
_RESHARD, _REPLICATE = "parallelism.fsdp_reshard_after_forward", "parallelism.data_parallel_replicate_degree"
# The more is recomputed the later.
_CHECKPOINTS: tuple[Settings, ...] = (
    {_MODE: "none"},
    {_MODE: "selective", _OPTION: "op"},
    {_MODE: "selective", _OPTION: "2"},
    {_MODE: "full"},
)
# Settings that a dry run leaves out: memory_of counts them by itself.
_NOT_TRIED = ("optimizer.name", "training.enable_cpu_offload")
_MOST_ROWS = 256


@dataclass(frozen=True)
class Choice:
    """One way, in keys of the config that differ from the plan's."""

    settings: tuple[tuple[str, Any], ...]
    num_gpus: int
    memory: Memory
    hours: float | None
    """Predicted hours of the run, see `Search.hours`; None where they depend on more than the GPU."""

    @property
    def fits(self) -> bool:
        """Whether a GPU has the memory."""
        return self.memory.fits

    @property
    def needed_bytes(self) -> float:
        """Memory of one GPU."""
        return self.memory.needed_bytes

    @property
    def flags(self) -> str:
        """Text for the command line."""
        return " ".join(f"--{name} {value}" for name, value in self.settings)


def fastest(plan: Plan) -> Choice | None:
    """The fastest local batch size, activation checkpointing, resharding and rows sampled together that fit."""
    search, best, wanted = Search(plan), None, {}
    for checkpoint in _CHECKPOINTS:
        tried = {**checkpoint, **search.sampled_together()}
        choice = search.largest_batch(tried)
        if choice is None or not choice.fits:
            continue
        if best is not None and _hours(choice) >= _hours(best):
            break  # more recomputation will not be faster either
        best, wanted = choice, {**tried, **dict(choice.settings)}
    if best is not None and plan.target.num_gpus > 1:
        for reshard in ("never", "always"):
            choice = search.try_settings({**wanted, _RESHARD: reshard})
            if choice is not None and choice.fits and _hours(choice) < _hours(best):
                best = choice
    return best


def cheapest_changes(plan: Plan, count: int = 3) -> list[Choice]:
    """Changes that make it fit, each of other keys: on as few GPUs as now first, then by predicted hours.

    A change of several keys comes last, and is tried only where too few single ones suffice.
    """
    search = Search(plan)
    found = [choice for choice in search.single_changes() if choice.fits and choice.settings]
    ranked = sorted(found, key=lambda choice: (choice.hours is None, choice.num_gpus, _hours(choice)))
    combined = search.combined_change() if len(ranked) < count else None
    return [*ranked, *([combined] if combined else [])][:count]


def apply(config: JobConfig, choice: Choice) -> JobConfig:
    """The config with the choice's settings."""
    return _with(config, dict(choice.settings))


class Search:
    """Dry runs of changes of one plan, each done once."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._tried: dict[tuple[Any, ...], Choice | None] = {}

    def try_settings(self, wanted: Mapping[str, Any], num_gpus: int | None = None) -> Choice | None:
        """The plan's run with these settings; None where the GPUs cannot share its batch."""
        config, target = self.plan.config, replace(self.plan.target, num_gpus=num_gpus or self.plan.target.num_gpus)
        settings = {name: value for name, value in wanted.items() if _now(config, name) != value}
        if _ROWS in settings and not global_rows(config) and not isinstance(config, GrpoConfig):
            settings["training.global_batch_size"] = self.plan.dry_run.run_size.rows  # else it would follow the local
        key = (*sorted(settings.items()), target.num_gpus)
        if key not in self._tried:
            self._tried[key] = self._try(settings, target)
        return self._tried[key]

    def _try(self, settings: Settings, target: Target) -> Choice | None:
        changed, result = _with(self.plan.config, settings), self.plan.dry_run
        try:
            if target != self.plan.target or not set(settings) <= set(_NOT_TRIED):
                result = dry_run_step(changed, target.num_gpus, counts=True, card_gib=target.gpu.memory_gib)
        except ConfigError:
            return None
        hours = None if changed.training.enable_cpu_offload else self.hours(changed, target, result)
        more = {} if target == self.plan.target else {"num_gpus": target.num_gpus}
        return Choice(tuple({**settings, **more}.items()), target.num_gpus, memory_of(changed, target, result), hours)

    def hours(self, config: JobConfig, target: Target, result: DryRunResult) -> float:
        """The plan's hours, scaled by the work of a row on a GPU against that in the plan's own dry run.

        The update is AdamW's with moments of 32 bits.
        """
        plan = self.plan
        ratio = row_seconds(config, target, result) / row_seconds(plan.config, plan.target, plan.dry_run)
        rollouts = rollouts_of(config, plan.args, target, plan.flops_per_token)
        if rollouts is None:
            return plan.hours * ratio * plan.target.num_gpus / target.num_gpus
        return config.training.steps * (rollouts.rollout_seconds + rollouts.train_seconds * ratio) / 3600

    def single_changes(self) -> Iterator[Choice]:
        """The least change of each kind that fits, by what the plan's own dry run says may fit."""
        memory, kinds = self.plan.memory, self.plan.memory.by_kind
        without_activations = memory.peak_bytes - kinds.get("activations", 0.0)
        ways: list[Choice | None] = [
            self.try_settings({"optimizer.name": "AdamW8bit"}),
            self.try_settings({"training.enable_cpu_offload": "true"}),
            self.try_settings(self.sampled_together()),
        ]
        if freed := self._weights_freed():
            ways.append(self.try_settings(freed))
        if self.plan.config.parallelism.data_parallel_replicate_degree > 1:
            ways.append(self.try_settings({_REPLICATE: 1}))
        if without_activations < memory.available_bytes:
            ways += [self.largest_batch({}), self._least_recomputation()]
        sharded = ("parameters", "gradients", "optimizer", "reference", "teacher", "averaged_weights")
        states = sum(kinds.get(kind, 0.0) for kind in sharded)
        for times in (2, 4, 8):
            if memory.peak_bytes - states * (1 - 1 / times) < memory.available_bytes:
                more = self.try_settings({}, times * self.plan.target.num_gpus)
                ways.append(more)
                if more is not None and more.fits:
                    break
        return (choice for choice in ways if choice is not None)

    def _least_recomputation(self) -> Choice | None:
        now = next((n for n, way in enumerate(_CHECKPOINTS) if self._is_now(way)), 0)
        tried = (self.try_settings(checkpoint) for checkpoint in _CHECKPOINTS[now + 1 :])
        return next((choice for choice in tried if choice is not None and choice.fits), None)

    def combined_change(self) -> Choice | None:
        """The least recomputation that makes it fit together with another local batch."""
        for checkpoint in _CHECKPOINTS[1:]:
            choice = self.largest_batch({**checkpoint, **self._weights_freed(), **self.sampled_together()})
            if choice is not None and choice.fits and len({name.split(".")[0] for name, _ in choice.settings}) > 1:
                return choice
        return None

    def _weights_freed(self) -> Settings:
        """On several GPUs gathered weights can be freed after each use, which "default" does for large models alone."""
        return {_RESHARD: "always"} if self.plan.target.num_gpus > 1 else {}

    def _is_now(self, wanted: Settings) -> bool:
        return all(_now(self.plan.config, name) == value for name, value in wanted.items())

    def largest_batch(self, wanted: Settings) -> Choice | None:
        """The largest local batch that fits with these settings.

        A dry run of the present batch says which sizes may fit: activations grow with the rows. These are tried from
        the largest on.
        """
        seen = self.try_settings(wanted)
        if seen is None:
            return None
        memory, rows = seen.memory, self.plan.dry_run.run_size.local_rows
        by_rows = sum(memory.by_kind.get(kind, 0.0) for kind in ("activations", "temporary"))
        for size in reversed(self._local_sizes()):
            if memory.needed_bytes + by_rows * (size / rows - 1) > memory.available_bytes:
                continue
            choice = self.try_settings({**wanted, _ROWS: size})
            if choice is not None and choice.fits:
                return choice
        return None

    def sampled_together(self) -> Settings:
        """GRPO: rollout.max_rows halved until the rows fit beside what stays in memory, or if kept, beside a step."""
        plan, memory = self.plan, self.plan.memory
        if plan.rollouts is None:
            return {}
        rows, cache = memory.sampling_bytes, plan.rollouts.kv_cache_bytes
        beside = staying_bytes(memory.by_kind)
        if not rows and memory.by_kind.get("rollout_engine", 0.0) >= cache:
            rows, beside = cache, memory.peak_bytes - cache  # graphs keep them
        room = memory.available_bytes - (memory.needed_bytes - memory.peak_bytes) - beside
        halvings = next((n for n in range(3) if rows / 2**n <= room), 3)
        return {"rollout.max_rows": plan.rollouts.rows >> halvings} if halvings else {}

    def _local_sizes(self) -> list[int]:
        if isinstance(self.plan.config, GrpoConfig):
            return [2**n for n in range(9)]
        return [size for size in divisors(self.plan.dry_run.run_size.rows_per_rank) if size <= _MOST_ROWS]


def row_seconds(config: JobConfig, target: Target, result: DryRunResult) -> float:
    """Seconds of one GPU for one row (GRPO: one completion) by a roofline, of the data sheet where no more is known.

    A smaller local batch reads the weights more often, recomputation computes more, small kernels wait for the host.
    """
    rows: float = result.run_size.rows_per_rank
    if isinstance(config, GrpoConfig):
        rows = update_samples(config) / target.num_gpus
    return update_time(config, target, result).total / rows


def _hours(choice: Choice) -> float:
    return choice.hours or 0.0


def _now(config: JobConfig, name: str) -> Any:
    section, key = name.split(".")
    return getattr(getattr(config, section), key)


def _with(config: JobConfig, settings: Settings) -> JobConfig:
    tables: dict[str, Settings] = {}
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
