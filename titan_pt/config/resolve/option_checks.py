"""Rules between fields that most configs leave as they are. Imported where one does not."""

import operator
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from titan_pt.config.errors import ConfigError, nearest, one_of, shown
from titan_pt.config.schema.job_config import BrokenRule, JobConfig
from titan_pt.protocols.registry import import_attribute

if TYPE_CHECKING:
    from titan_pt.protocols.model_spec import ModelSpec


def rules(config: JobConfig, spec: "ModelSpec[Any]") -> Iterator[BrokenRule]:
    """The broken ones."""
    yield from _model(config, spec)
    for rule in (_notify, _schedule, _stalls, _validation, _validation_tasks, _averages, _memory, _profiling, _sinks):
        yield from rule(config)


def _model(config: JobConfig, spec: "ModelSpec[Any]") -> Iterator[BrokenRule]:
    if config.checkpoint.export_hf_interval and spec.hugging_face is None:
        yield (
            ["checkpoint.export_hf_interval"],
            f"checkpoint.export_hf_interval = {config.checkpoint.export_hf_interval}: model {spec.name!r} has no "
            "Hugging Face layout",
        )
    elif config.checkpoint.export_hf_interval and (layout := spec.layout()):
        try:
            layout.write_config(import_attribute("titan_pt.config.resolve.checks:model_args")(config, spec, 1))
        except ConfigError as error:
            yield ["checkpoint.export_hf_interval", "model"], f"checkpoint.export_hf_interval: {error}"
    if config.quantize.linear.float8 and config.model.converters is None:
        yield (
            ["model.converters", "quantize"],
            'quantize.linear.float8: model.converters = ["quantize.linear.float8"] turns this table on and [] '
            "leaves it off; set one of them",
        )


def _schedule(config: JobConfig) -> Iterator[BrokenRule]:
    schedule = config.lr_scheduler
    if schedule.total_steps and config.training.max_hours is not None:
        yield (
            ["lr_scheduler.total_steps", "training.max_hours"],
            f"lr_scheduler.total_steps = {schedule.total_steps}: fixes the end of the decay, which training.max_hours "
            "moves; leave one of them out",
        )
    if config.training.on_bad_step == "rewind" and (config.checkpoint.load_only or not config.checkpoint.enable):
        yield (
            ["training.on_bad_step", "checkpoint.enable", "checkpoint.load_only"],
            'training.on_bad_step = "rewind": goes back to saved steps; save some by checkpoint.enable = true and '
            'checkpoint.load_only = false, or set it to "skip"',
        )


def _notify(config: JobConfig) -> Iterator[BrokenRule]:
    said = f"job.notify = {shown(config.job.notify)}: is no command line"
    try:
        if config.job.notify and not shlex.split(config.job.notify):
            yield ["job.notify"], f'{said}; name a program, or leave it ""'
    except ValueError as error:
        yield ["job.notify"], f"{said} ({error}); close the quotes"


def _stalls(config: JobConfig) -> Iterator[BrokenRule]:
    data = config.data
    if data.stall_policy == "substitute" and data.substitute_after_seconds >= data.max_stall_seconds:
        yield (
            ["data.substitute_after_seconds", "data.max_stall_seconds"],
            f"data.substitute_after_seconds = {data.substitute_after_seconds:g}: must be below "
            f"data.max_stall_seconds = {data.max_stall_seconds:g}, at which the run ends",
        )


def _validation(config: JobConfig) -> Iterator[BrokenRule]:
    validation = config.validation
    if validation.enable and validation.steps == 0:
        yield ["validation.steps"], "validation.steps = 0: must be positive, or -1 for all documents"
    if validation.enable and validation.holdout_fraction == 0.0 and not validation.sources:
        yield (
            ["validation.holdout_fraction", "validation.sources"],
            "validation.holdout_fraction = 0.0: leaves no documents to validate on; "
            "raise it, add [[validation.sources]], or set validation.enable = false",
        )
    if validation.holdout_fraction == 1.0 and not validation.sources:
        yield (
            ["validation.holdout_fraction", "validation.sources"],
            "validation.holdout_fraction = 1.0: leaves no documents to train on; it must be below 1",
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


# (which weights, the key without which that has no effect, a value for it)
_NEEDED_BY_AVERAGES = (
    ("validation.weights", "training.ema_decay", "0.999"),
    ("checkpoint.export_weights", "training.ema_decay", "0.999"),
    ("validation.weights", "validation.enable", "true"),
    ("checkpoint.export_weights", "checkpoint.export_hf_interval", "500"),
    ("checkpoint.initial_load_weights", "checkpoint.initial_load_path", '"outputs/..."'),
)


def _averages(config: JobConfig) -> Iterator[BrokenRule]:
    for key, needed, example in _NEEDED_BY_AVERAGES:
        value, other = operator.attrgetter(key, needed)(config)
        if value != "trained" and not other:
            yield (
                [key, needed],
                f"{key} = {shown(value)}: needs {needed}; set it, such as to {example}, or leave {key} out",
            )


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


def no_model(error: ValidationError) -> ConfigError:
    """What is wrong with the arguments of `[model]`."""
    return ConfigError(
        *(
            f"model.{'.'.join(str(part) for part in p['loc'])}: {p['msg']}"
            if p["loc"]
            else p["msg"].removeprefix("Value error, ")
            for p in error.errors(include_url=False)
        )
    )


def problems_of_model(error: ConfigError, spec: "ModelSpec[Any]") -> Iterator[BrokenRule]:
    """The same by the keys that each is about."""
    for problem in error.problems:
        named = [f"model.{name}" for name in spec.args_type.model_fields if name in problem]
        if "tokenizer" in problem:
            named.append("tokenizer.name")
        yield ["model.flavor", *named], problem
