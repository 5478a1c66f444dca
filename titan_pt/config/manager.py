"""The manager turns arguments into one validated, immutable JobConfig; `python -m titan_pt.config.manager` prints it.

Precedence: command line > TOML file > the files it extends > the folder of model.from_hf > default. Everything is
checked once and all problems are reported together.
"""

import functools
import logging
import sys
from collections.abc import Collection, Set
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, ValidationError, create_model
from pydantic.fields import FieldInfo

from titan_pt.config.errors import ConfigError
from titan_pt.config.resolve import flags as command_line
from titan_pt.config.resolve.checks import DERIVED_ARGS, RuleProblem, cross_check
from titan_pt.config.resolve.layers import Layer, Merged, merge, read_layers
from titan_pt.config.schema.job_config import Experimental, Job, JobConfig, Model, Section
from titan_pt.config.schema.training import BUILTIN_OPTIMIZERS
from titan_pt.protocols.model_spec import ModelSpec, get_model_spec, model_names
from titan_pt.protocols.trainer_spec import trainer_config, trainer_names

logger = logging.getLogger("titan_pt")

# What has to be known before a config can be validated.
_MODEL = ("model.name", "model.flavor", "model.from_hf")
_DECISIVE = ("job.trainer", *_MODEL, "optimizer.name", "experimental.custom_import")


@dataclass(frozen=True)
class Resolved:
    """A config, the origin of each value set by a layer, and notices for the log."""

    config: JobConfig
    merged: Merged
    notices: tuple[str, ...]


def load_config(argv: list[str] | None = None) -> JobConfig:
    """The config of `argv` (default: the process's arguments), e.g. `["--job.config_file", "x.toml"]`.

    Raises:
        ConfigError: every problem found, in one go.
        SystemExit: after `--help`.
    """
    resolved = resolve(sys.argv[1:] if argv is None else argv)
    for notice in resolved.notices:
        logger.warning(notice)
    return resolved.config


def resolve(argv: list[str]) -> Resolved:
    """Read, merge and validate all layers."""
    problems: list[str] = []
    flags = command_line.read_flags(argv)
    layers = _read_files(flags, problems)
    choices = merge([*layers, _peek(flags)], JobConfig.PAIRS, [])
    trainer, model, optimizer = _choose(choices, problems)
    config_type, model_spec = config_class(trainer, model, optimizer)
    notices: list[str] = []
    if _chosen(choices, "model.from_hf", "") or _chosen(choices, "model.flavor", "").startswith("depth-"):
        from titan_pt.config.resolve.architecture import layers_below

        layers = [*layers_below(choices, flags, trainer, model_spec, problems, notices), *layers]
    if ("help", "true") in flags:
        from titan_pt.config.resolve.help import help_text

        print(help_text(config_type), end="")
        sys.exit(0)
    flag_layer = command_line.to_layer(flags, config_type, problems)
    own_defaults = Layer(f"default of {trainer}", {table: dict(keys) for table, keys in config_type.DEFAULTS.items()})
    merged = merge([own_defaults, *layers, flag_layer], config_type.PAIRS, problems)
    config: JobConfig | None
    invalid: Set[str] = set()
    try:
        config = config_type.model_validate(merged.copied())
    except ValidationError:
        from titan_pt.config.resolve.report import valid_part

        config, invalid = valid_part(config_type, merged, problems, notices)
    if config is not None:
        problems += [
            _with_origins(problem, merged)
            for problem in cross_check(config, model_spec)
            if not any(invalid & {name, name.split(".")[0]} for name in problem.fields)
        ]
    if problems or config is None:
        raise ConfigError(*dict.fromkeys(problems))
    return Resolved(config, merged, tuple(notices))


def _read_files(flags: command_line.Flags, problems: list[str]) -> list[Layer]:
    path = dict(flags).get("job.config_file")
    layers = read_layers(path) if path is not None else []
    for layer in layers:
        job = layer.tables.get("job")
        if isinstance(job, dict) and "config_file" in job:
            problems.append(
                f"job.config_file ({layer.origin}): a flag, not a key; to build on another file, use extends"
            )
    return layers


def _peek(flags: command_line.Flags) -> Layer:
    """The flags that decide which config class there is, and which folder sets the architecture."""
    tables: dict[str, Any] = {}
    for name, text in flags:
        if name in _DECISIVE and text is not None:
            section, key = name.split(".")
            tables.setdefault(section, {})[key] = text
    return Layer(command_line.ORIGIN, tables)


def _choose(choices: Merged, problems: list[str]) -> tuple[str, str, str]:
    """The chosen trainer, model and optimizer; an unknown name joins `problems`, and the closest stands in."""
    module = _chosen(choices, "experimental.custom_import", Experimental().custom_import)
    if module:
        from titan_pt.protocols.plugins import import_plugin

        import_plugin(module, "experimental.custom_import", problems)
    return (
        _known(choices, "job.trainer", trainer_names(), Job().trainer, problems),
        _known(choices, "model.name", model_names(), Model().name, problems),
        _known(choices, "optimizer.name", BUILTIN_OPTIMIZERS, BUILTIN_OPTIMIZERS[0], problems),
    )


def _chosen(choices: Merged, name: str, default: str) -> str:
    section, key = name.split(".")
    value = (choices.table_at([section]) or {}).get(key)
    return value if isinstance(value, str) else default  # another type: validation says so


def _known(choices: Merged, name: str, known: Collection[str], default: str, problems: list[str]) -> str:
    value = _chosen(choices, name, default)
    if value in known:
        return value
    from titan_pt.config.resolve.choices import own_or_meant

    return own_or_meant(name, value, choices.origin(*name.split(".")), known, problems) or default


def _with_origins(problem: RuleProblem, merged: Merged) -> str:
    origins = sorted({merged.origin(*name.split(".")) for name in problem.fields} - {"default"})
    return f"{problem.text} (set by {', '.join(origins)})" if origins else problem.text


@functools.cache  # two configs of one trainer and model have one class, so that they can be equal
def config_class(trainer: str, model: str, optimizer: str = "AdamW") -> tuple[type[JobConfig], ModelSpec[Any]]:
    """The trainer's config class, its `[model]` with the model's own fields; and the model's spec."""
    config_type, model_spec = trainer_config(trainer), get_model_spec(model)
    if optimizer not in BUILTIN_OPTIMIZERS:
        from titan_pt.config.resolve.choices import with_optimizer

        config_type = with_optimizer(config_type, optimizer)
    own = {
        name: (_with_metadata(info) | None, Field(default=None, description=info.description))
        for name, info in model_spec.args_type.model_fields.items()
        if name not in Model.model_fields and name not in DERIVED_ARGS
    }
    model_type: Any = create_model("Model", __base__=Model, __doc__=Model.__doc__, **own)  # type: ignore[call-overload]
    return create_model(config_type.__name__, __base__=config_type, model=(model_type, model_type())), model_spec


def _with_metadata(info: FieldInfo) -> Any:
    return Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation


def dump_toml(config: JobConfig) -> str:
    """The resolved config as TOML; loading it again gives an equal config, but for secrets of addresses."""
    return config.to_toml()


def main(argv: list[str] | None = None) -> int:
    """Print the resolved TOML; with `--explain`, where each value came from. Returns the exit code."""
    from titan_pt.config.resolve.printing import print_resolved

    return print_resolved(resolve, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())


__all__ = ["JobConfig", "Resolved", "Section", "dump_toml", "load_config", "resolve"]
