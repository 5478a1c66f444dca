"""Checks that a checkpoint is of the run that loads it: equal trainer, model, tokenizer, optimizer and data."""

import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from titan_pt.components.checkpoint.mismatch import describe
from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.job_config import JobConfig

logger = logging.getLogger("titan_pt")

# Initial weights depend on the first, the steps to come on the second; weights that were trained do not.
NOT_THE_MODEL = ("init_std", "dropout")
# A limit of the model's input, without effect on what it computes.
_LONGEST_INPUT = "model.max_seq_len"
# The shapes of weights do not depend on these, but the weights were trained with them.
_ARITHMETIC = ("model.rope_theta", "model.norm_eps")

# Names of checkpoint.allow_mismatch, by parts of an identity. "data.sources" is compared by files (`resume.py`).
_ALLOWABLE = {
    **{name: name for name in _ARITHMETIC},
    "tokenizer.fingerprint": "tokenizer",
    "data.tokenizer": "tokenizer",
    "data.sources": "data.sources",
    "data.holdout_fraction": "validation.holdout_fraction",
}

_FIX = "set the config back, or start another run with another job.dump_folder"


def check_compatible(
    saved: Mapping[str, Any],
    current: Mapping[str, Any],
    folder: Path,
    config: JobConfig,
    config_toml: str,
    *,
    allowed: Collection[str] = (_LONGEST_INPUT,),
    others: Sequence[str] = (),
    fix: str = _FIX,
    keys: Mapping[str, Collection[str]] | None = None,
) -> None:
    """Raise a ConfigError that names every difference between a checkpoint's identity and the run's.

    Args:
        config_toml: the config that was saved with the checkpoint, for the keys of the TOML that made a difference.
        allowed: keys that may differ; a warning names them.
        others: differences found elsewhere; they come first.
        fix: what the user can do; ends the message.
        keys: further keys, or whole tables, that decide a part of the identity.
    """
    differences = dict(_differences(saved, current, ""))
    for name in NOT_THE_MODEL:
        differences.pop(f"model.{name}", None)
    wished = config.checkpoint.allow_mismatch
    for name in sorted(differences):
        if name in allowed or _ALLOWABLE.get(name) in wished:
            there, here = differences.pop(name)
            both = f"{name} is {there!r} there and {here!r} here"
            logger.warning(f"{folder}: {both}; the weights fit, but results may change")
    if others and "data.sources" in wished:
        logger.warning(f"{folder}: {'; '.join(others)}; allowed by checkpoint.allow_mismatch")
        others = ()
    if others or differences:
        parts = [part for part in ("optimizer", "data") if any(name.split(".")[0] == part for name in differences)]
        if others and "data" not in parts:
            parts.append("data")
        anew = f", or start {parts[0]} anew with checkpoint.exclude_from_loading = {json.dumps(parts)}" if parts else ""
        names = {*map(_ALLOWABLE.get, differences), *(["data.sources"] if others else [])}
        if None not in names:
            anew += f", or go on all the same with checkpoint.allow_mismatch = {json.dumps(sorted(map(str, names)))}"
        told = [*others, *describe(differences, config_toml, config, keys)]
        raise ConfigError(f"{folder} is of another run: {'; '.join(told)}; {fix}{anew}")


def check_model_compatible(
    saved: Mapping[str, Any], current: Mapping[str, Any], folder: Path, config: JobConfig, config_toml: str
) -> None:
    """Raise a ConfigError unless starting weights fit the run, by the model's arguments and the tokenizer."""
    check_compatible(
        {key: saved[key] for key in ("model", "tokenizer")},
        {key: current[key] for key in ("model", "tokenizer")},
        folder,
        config,
        config_toml,
        allowed=(_LONGEST_INPUT, *_ARITHMETIC),
        fix="set [model] and [tokenizer] to those of checkpoint.initial_load_path",
    )


def _differences(saved: Any, current: Any, name: str) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Yield (dotted name, both values) of every value that differs."""
    if isinstance(saved, Mapping) and isinstance(current, Mapping):
        for key in sorted({*saved, *current}):
            yield from _differences(saved.get(key), current.get(key), f"{name}.{key}" if name else str(key))
    elif saved != current:
        yield name, (saved, current)
