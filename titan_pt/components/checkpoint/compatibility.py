"""What a checkpoint must share with a run: the trainer, the model, the tokenizer, the data."""

import logging
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from titan_pt.components.tokenizer import Tokenizer
from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.job_config import JobConfig

logger = logging.getLogger("titan_pt")

# These weights were drawn with it; it has no say any more.
_SPENT = "model.init_std"
# Changes how far the model can read, and no number of what it reads.
_SPAN = "model.max_seq_len"
# Weights fit with others too, but mean what they were trained with.
_MEANING = ("model.rope_theta", "model.norm_eps")

_WAY_OUT = "set the config back, or start another run with another job.dump_folder"


def run_identity(config: JobConfig, args: Any, tokenizer: Tokenizer) -> dict[str, Any]:
    """Of a run, as it is saved with every checkpoint."""
    return {
        "trainer": config.job.trainer,
        "model": {"name": config.model.name, **args.model_dump()},
        "tokenizer": {"fingerprint": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size},
        "optimizer": config.optimizer.name,
    }


def check_compatible(
    saved: Mapping[str, Any],
    current: Mapping[str, Any],
    folder: Path,
    *,
    allowed: Collection[str] = (_SPAN,),
    way_out: str = _WAY_OUT,
) -> None:
    """Raise a ConfigError that names every difference, but for those that do no harm.

    Args:
        allowed: what may differ, with a warning.
    """
    differences = dict(_differences(saved, current, ""))
    differences.pop(_SPENT, None)
    for name in sorted(differences.keys() & set(allowed)):
        logger.warning(f"{folder}: {differences.pop(name)}; the weights fit, but results may change")
    if differences:
        raise ConfigError(f"{folder} is of another run: {'; '.join(differences.values())}; {way_out}")


def check_model_compatible(saved: Mapping[str, Any], current: Mapping[str, Any], folder: Path) -> None:
    """The same for starting weights: the shapes of the model, and the vocabulary."""
    check_compatible(
        {key: saved[key] for key in ("model", "tokenizer")},
        {key: current[key] for key in ("model", "tokenizer")},
        folder,
        allowed=(_SPAN, *_MEANING),
        way_out="set [model] and [tokenizer] to those of checkpoint.initial_load_path",
    )


def _differences(saved: Any, current: Any, name: str) -> Iterator[tuple[str, str]]:
    """(name, what differs) of all values."""
    if isinstance(saved, Mapping) and isinstance(current, Mapping):
        for key in sorted({*saved, *current}):
            yield from _differences(saved.get(key), current.get(key), f"{name}.{key}" if name else str(key))
    elif saved != current:
        yield name, f"{name} is {saved!r} there and {current!r} here"
