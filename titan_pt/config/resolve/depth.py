"""`model.flavor = "depth-N"`: what follows from the number of blocks. Imported where a config says so.

One key makes a ladder of sizes. The rules are those of nanochat (one dial, width 64 a block) and of published laws.
Each value is a default that files and flags override, and an override changes no other value.
"""

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from titan_pt.config.errors import shown
from titan_pt.config.resolve.layers import Layer
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.config.schema.values import parse_size
from titan_pt.protocols.model_spec import ModelSpec

PREFIX = "depth-"
MOST = 128
_HEAD = 64
_TOKENS_PER_PARAMETER = 20


class Following(NamedTuple):
    """A key whose value follows from the depth."""

    name: str
    value: Any
    rule: str


def architecture(depth: int) -> Iterator[Following]:
    """The keys of [model]: width 64 a block, heads of 64, the SwiGLU's 8/3 of the width (Shazeer 2020)."""
    yield Following("model.num_layers", depth, "N")
    yield Following("model.hidden_size", _HEAD * depth, "64 N")
    yield Following("model.num_heads", depth, "hidden_size / 64")
    yield Following("model.num_kv_heads", depth, "num_heads")
    yield Following("model.head_dim", _HEAD, "64")
    yield Following("model.intermediate_size", _HEAD * -(-8 * depth // 3), "8/3 hidden_size, in steps of 64")


def training(depth: int, seq_len: int) -> Iterator[Following]:
    """The keys of a pretraining run.

    Tokens: about 20 a parameter (Hoffmann et al. 2022, https://arxiv.org/abs/2203.15556), of those in the blocks, so
    that they do not depend on the vocabulary. Batch and weight decay: Bergsma et al. 2025
    (https://arxiv.org/abs/2505.13738), B = 0.0306 D^0.383 sequences of 2,048 tokens, and lambda = B / (lr D tau) with
    tau = 1.084 (tokens a parameter)^-0.527. Their models began at 111M parameters; below depth 12 the law asks for more
    decay than is usual, so it ends at 1. Rate: width^-0.5, as nanochat has it for AdamW.
    """
    width, inner = _HEAD * depth, _HEAD * -(-8 * depth // 3)
    tokens = _TOKENS_PER_PARAMETER * depth * (4 * width**2 + 3 * width * inner)
    rows = max(1, 2 ** round(math.log2(0.0306 * tokens**0.383 * 2048 / seq_len)))
    batch, lr = rows * seq_len, _rounded(1e-3 * (768 / width) ** 0.5)
    tau = 1.084 * _TOKENS_PER_PARAMETER**-0.527
    decay = _rounded(min(1.0, batch / (lr * tokens * tau)))
    yield Following("training.tokens", tokens, "20 x the parameters of the blocks' matrices")
    yield Following("training.global_batch_tokens", batch, "0.0306 tokens^0.383 x 2048, in rows a power of two")
    if rows < JobConfig().training.local_batch_size:
        yield Following("training.local_batch_size", rows, "the whole batch")
    yield Following("optimizer.lr", lr, "1e-3 (768 / hidden_size)^0.5")
    yield Following("optimizer.weight_decay", decay, f"batch / (lr tokens {tau:.3g}), at most 1")
    yield Following("lr_scheduler.warmup_steps", max(1, tokens // batch // 25), "a 25th of the steps")


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def follow(flavor: str, trainer: str, seq_len: int) -> list[Following]:
    """All that follows; for a kind of training that starts from a model, its architecture alone.

    Raises:
        ValueError: it is no depth.
    """
    match = re.fullmatch(rf"{PREFIX}([1-9][0-9]{{0,2}})", flavor)
    if not match or int(match[1]) > MOST:
        raise ValueError(f'must be "{PREFIX}" and the number of blocks, 1 to {MOST}, such as "{PREFIX}6"')
    depth = int(match[1])
    return [*architecture(depth), *(training(depth, seq_len) if trainer == "pretrain" else ())]


def depth_layer(flavor: str, trainer: str, spec: ModelSpec[Any], seq_len: Any, problems: list[str]) -> list[Layer]:
    """The layer under all files; a mistake joins `problems`, and one block stands in.

    Args:
        seq_len: training.seq_len as files and flags have it, or None.
    """
    said = f"model.flavor = {shown(flavor)}"
    found = follow(f"{PREFIX}1", trainer, 2048)
    try:
        if missing := {key.name for key in architecture(1)} - {f"model.{name}" for name in spec.args_type.model_fields}:
            raise ValueError(f"model {spec.name!r} has no {', '.join(sorted(missing))}; name one of its flavors")
        found = follow(flavor, trainer, _rows_of(seq_len))
    except ValueError as error:
        problems.append(f"{said}: {error}")
    layered: dict[str, dict[str, Any]] = {}
    for key in found:
        section, name = key.name.split(".")
        layered.setdefault(section, {})[name] = key.value
    return [Layer(said, layered)]


def _rows_of(seq_len: Any) -> int:
    """Tokens of a row; the default where that is a wrong one, which validation tells."""
    default: int = JobConfig().training.seq_len
    try:
        given = parse_size(default if seq_len is None else seq_len)
    except ValueError:
        return default
    return given if isinstance(given, int) and 0 < given < 2**40 else default


def lines(config: JobConfig) -> list[str]:
    """What follows from the depth of a config and by which rule, and where the config has another value; or nothing."""
    return [
        f"  {key['name']:29} {key['by_rule']!s:>13}  {key['rule']}"
        + ("" if key["used"] == key["by_rule"] else f"  (here {'unset' if key['used'] is None else key['used']})")
        for key in as_json(config)
    ]


def as_json(config: JobConfig) -> list[dict[str, Any]]:
    """Each key that follows from the depth: name, by_rule, used, rule."""
    if not config.model.flavor.startswith(PREFIX) or config.model.from_hf:
        return []
    found = follow(config.model.flavor, config.job.trainer, config.training.seq_len)
    tables = config.model_dump()
    return [
        {"name": key.name, "by_rule": key.value, "used": tables[section].get(name), "rule": key.rule}
        for key in found
        for section, name in [key.name.split(".")]
    ]
