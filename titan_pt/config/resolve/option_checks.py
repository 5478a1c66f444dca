"""Rules between fields that most configs leave as they are. Imported where one does not."""

from collections.abc import Iterator

from titan_pt.config.errors import nearest, one_of, shown
from titan_pt.config.schema.job_config import BrokenRule, JobConfig
from titan_pt.protocols.registry import import_attribute


def rules(config: JobConfig) -> Iterator[BrokenRule]:
    """The broken ones."""
    for rule in (_stalls, _validation_tasks, _memory, _profiling, _sinks):
        yield from rule(config)


def _stalls(config: JobConfig) -> Iterator[BrokenRule]:
    data = config.data
    if data.stall_policy == "substitute" and data.substitute_after_seconds >= data.max_stall_seconds:
        yield (
            ["data.substitute_after_seconds", "data.max_stall_seconds"],
            f"data.substitute_after_seconds = {data.substitute_after_seconds:g}: must be below "
            f"data.max_stall_seconds = {data.max_stall_seconds:g}, at which the run ends",
        )


def _validation_tasks(config: JobConfig) -> Iterator[BrokenRule]:
    validation = config.validation
    given = [name for name in ("tasks", "sample_prompts") if getattr(validation, name)]
    for name in given if not validation.enable else ():
        yield (
            [f"validation.{name}", "validation.enable"],
            f"validation.{name}: has no effect without validation; set validation.enable = true, or leave it out",
        )
    names = [task.name for task in validation.tasks]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield ["validation.tasks"], f"validation.tasks: two tasks are named {name!r}; names must differ"


def _memory(config: JobConfig) -> Iterator[BrokenRule]:
    option = config.activation_checkpoint.selective_ac_option
    valid = option == "op" or (option.isascii() and option.isdigit() and len(option) < 10 and int(option) > 0)
    if config.activation_checkpoint.mode == "selective" and not valid:
        yield (
            ["activation_checkpoint.selective_ac_option"],
            f'activation_checkpoint.selective_ac_option = {shown(option)}: must be "op" or a positive integer',
        )


def _profiling(config: JobConfig) -> Iterator[BrokenRule]:
    profiling = config.profiling
    needed = profiling.profiler_active + profiling.profiler_warmup
    if profiling.enable_profiling and profiling.profile_freq < needed:
        yield (
            ["profiling.profile_freq", "profiling.profiler_active", "profiling.profiler_warmup"],
            f"profiling.profile_freq = {profiling.profile_freq}: must be at least profiler_warmup + profiler_active "
            f"= {needed}",
        )


def _sinks(config: JobConfig) -> Iterator[BrokenRule]:
    known = {"tensorboard", *import_attribute("titan_pt.sinks:SINKS")}
    for name in config.metrics.sinks:
        if name not in known:
            hint = nearest(name, known) or "; register_sink in a module of experimental.custom_import adds one"
            yield ["metrics.sinks"], f"metrics.sinks = {shown(name)}: unknown; known are {one_of(known)}{hint}"
