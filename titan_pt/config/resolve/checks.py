"""Rules between fields, checked before anything is built."""

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ValidationError

from titan_pt.config.batch import fits, global_rows
from titan_pt.config.builtin_datasets import BUILTIN_DATASETS
from titan_pt.config.errors import ConfigError, nearest, one_of
from titan_pt.config.schema.job_config import JobConfig, Source

if TYPE_CHECKING:
    from titan_pt.protocols.model_spec import ModelSpec

# Known without opening any file.
BUILTIN_TOKENIZER_SIZES = {"byte": 259, "gpt2": 50257}

# Architecture arguments that follow from the tokenizer; not keys of `[model]`.
DERIVED_ARGS = ("num_tokens",)


class RuleProblem(NamedTuple):
    """A broken rule and the fields it speaks of; it is not reported when one of them is invalid in itself."""

    fields: frozenset[str]
    text: str


def cross_check(config: JobConfig, model_spec: "ModelSpec[Any]") -> list[RuleProblem]:
    """All broken rules of a config whose single values are valid: the common ones and its trainer's."""
    common = (rule(config, model_spec) for rule in (_model, _batch, _data, _of_options))
    broken = itertools.chain(*common, config.broken_rules())
    return [RuleProblem(frozenset(fields), text) for fields, text in broken]


def _model(config: JobConfig, spec: "ModelSpec[Any]") -> Iterator[tuple[list[str], str]]:
    model = config.model
    if model.flavor not in spec.flavors and not model.flavor.startswith("depth-"):
        hint = nearest(model.flavor, spec.flavors)
        yield ["model.flavor"], f"model.flavor = {model.flavor!r}: {spec.name} has {one_of(spec.flavors)}{hint}"
        return
    size = BUILTIN_TOKENIZER_SIZES.get(config.tokenizer.name)
    try:
        args = model_args(config, spec, size or 1)
    except ConfigError as error:
        from titan_pt.config.resolve.option_checks import problems_of_model

        yield from problems_of_model(error, spec)
        return
    longest = getattr(args, "max_seq_len", None)
    if longest is not None and config.training.seq_len > longest:
        yield ["training.seq_len"], f"training.seq_len = {config.training.seq_len}: above model.max_seq_len = {longest}"


def _batch(config: JobConfig, _: "ModelSpec[Any]") -> Iterator[tuple[list[str], str]]:
    training = config.training
    off = training.global_batch_size == 0 or (training.global_batch_tokens or 0) % training.seq_len
    if off or (global_rows(config) and not fits(config, 1)):  # else it follows from the ranks, which are not known yet
        from titan_pt.config.batch_problems import wrong_batch

        yield from wrong_batch(config)


def _data(config: JobConfig, _: "ModelSpec[Any]") -> Iterator[tuple[list[str], str]]:
    if not config.data.sources and config.job.trainer == "pretrain":
        from titan_pt.config.resolve.source_checks import no_sources

        yield no_sources(config)
    for table, sources in (("data.sources", config.data.sources), ("validation.sources", config.validation.sources)):
        # Local files under names of their own need no look.
        if len({s.name for s in sources}) < len(sources) or not all(_is_plain(source) for source in sources):
            from titan_pt.config.resolve.source_checks import source_rules

            yield from source_rules(table, sources)


def _is_plain(source: Source) -> bool:
    hub = (source.dataset, source.subset, source.split, source.revision)
    return source.path is not None and not any(hub) and source.name not in BUILTIN_DATASETS


def _of_options(config: JobConfig, spec: "ModelSpec[Any]") -> Iterator[tuple[list[str], str]]:
    """What most runs leave as it is."""
    checkpoint, data, validation, profiling = config.checkpoint, config.data, config.validation, config.profiling
    used = [config.job.notify, config.metrics.sinks, profiling.enable_profiling, checkpoint.export_hf_interval]
    used += [validation.tasks, validation.sample_prompts, validation.steps == 0, config.quantize.linear.float8]
    used += [validation.holdout_fraction in (0.0, 1.0), config.activation_checkpoint.mode == "selective"]
    used += [config.lr_scheduler.total_steps, data.stall_policy != "wait", config.training.on_bad_step == "rewind"]
    used += ["ema" in (checkpoint.initial_load_weights, checkpoint.export_weights), validation.weights != "trained"]
    if any(used):
        from titan_pt.config.resolve.option_checks import rules

        yield from rules(config, spec)


def model_args(config: JobConfig, spec: "ModelSpec[Any]", tokenizer_size: int) -> Any:
    """The model's arguments: the flavor, then the overrides of `[model]`, then the vocabulary.

    Raises:
        ConfigError: the combination is not a model, or its vocabulary is smaller than the tokenizer's.
    """
    model = config.model
    if model.vocab_size is not None and model.vocab_size < tokenizer_size:
        raise ConfigError(
            f"model.vocab_size = {model.vocab_size}: smaller than tokenizer {config.tokenizer.name!r} "
            f"({tokenizer_size}); leave it out for {padded_size(tokenizer_size)}"
        )
    fields = spec.args_type.model_fields
    overrides = {name: value for name in fields if (value := getattr(model, name, None)) is not None}
    flavor = spec.flavors.get(model.flavor)  # none of a depth, whose values are keys of [model]
    values = {**(flavor.model_dump() if flavor else {}), **overrides}
    if "vocab_size" in fields:
        values["vocab_size"] = model.vocab_size or padded_size(tokenizer_size)
    if "num_tokens" in fields:
        values["num_tokens"] = tokenizer_size
    try:
        return spec.args_type.model_validate(values)
    except ValidationError as error:
        from titan_pt.config.resolve.option_checks import no_model

        raise no_model(error) from None


def padded_size(tokenizer_size: int) -> int:
    """The tokenizer's size rounded up to a multiple of 64, which matrix units like."""
    return -(-tokenizer_size // 64) * 64
