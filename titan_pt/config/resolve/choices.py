"""A trainer, model or optimizer that is not a built-in one. Imported where a config names such."""

from collections.abc import Collection

from titan_pt.config.errors import nearest, one_of
from titan_pt.config.names import closest
from titan_pt.config.resolve.torchtitan import MODELS
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.protocols.optimizer_spec import get_optimizer_spec, optimizer_names
from titan_pt.protocols.own_sections import with_sections

_REGISTERS = {
    "job.trainer": "register_trainer_spec",
    "model.name": "register_model_spec",
    "optimizer.name": "register_optimizer",
}


def own_or_meant(name: str, value: str, origin: str, known: Collection[str], problems: list[str]) -> str | None:
    """The registered name that a key names, or the closest one, and what is wrong joins `problems`.

    Args:
        known: built-in names and, but for optimizers, the registered ones.
    """
    known = optimizer_names() if name == "optimizer.name" else known
    if value in known:
        return value
    hint = f"; in titan_pt it is {MODELS[value]}" if name == "model.name" and value in MODELS else nearest(value, known)
    problems.append(
        f"{name} = {value!r} ({origin}): unknown; known are {one_of(known)}{hint}; one of your own is made known by "
        f"{_REGISTERS[name]} in the module of experimental.custom_import (docs/extending.md)"
    )
    return closest(value, known)


def with_optimizer(config_type: type[JobConfig], name: str) -> type[JobConfig]:
    """A config class with the keys of a registered optimizer in [optimizer]."""
    return with_sections(config_type, {"optimizer": get_optimizer_spec(name).table})
