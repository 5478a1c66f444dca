"""[lora] of fine-tuning and reinforcement learning. No torch here."""

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from titan_pt.config.errors import nearest, one_of
from titan_pt.config.schema.job_config import BrokenRule, JobConfig
from titan_pt.config.schema.section import Name, PathName, Positive, PositiveInt, Section

ALL_LINEAR = "all-linear"
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Linear layers of a block of the built-in transformer, by Hugging Face's names."""


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Lora(Section):
    """[lora] adapters of low rank that are trained in the place of the weights (arXiv 2106.09685)."""

    enable: bool = False
    """Freeze the weights of checkpoint.initial_load_path and train adapters beside them; checkpoints hold these
    alone."""
    rank: PositiveInt = 16
    """Rank of each adapter."""
    alpha: Positive = 32.0
    """An adapter adds alpha / rank times its product."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of an adapter's inputs that is zeroed in training; sft alone."""
    target_modules: Annotated[list[Name], Field(min_length=1), BeforeValidator(_as_list)] = [ALL_LINEAR]
    """Linear layers that have an adapter, by the ends of their names, such as q_proj, self_attn.q_proj or
    layers.0.mlp.up_proj; "all-linear": all but the output layer."""
    path: PathName | None = None
    """Adapters to go on from: a run of [lora], its step-N, or a PEFT folder. Unset: new ones, which change nothing."""


def lora_without_effect(lora: Lora) -> Iterator[str]:
    """Yield a warning for each changed setting where adapters are off."""
    for key, field in Lora.model_fields.items() if not lora.enable else ():
        if getattr(lora, key) != field.default:
            yield f"lora.{key} has no effect: it needs lora.enable = true"


def lora_rules(config: JobConfig, lora: Lora) -> Iterator[BrokenRule]:
    """Yield the broken rules between [lora] and the rest of a run."""
    if not lora.enable:
        if lora.path:
            yield (
                ["lora.path", "lora.enable"],
                "lora.path: has no effect without lora.enable = true; set that, or leave lora.path out",
            )
        return
    if not config.checkpoint.initial_load_path:
        yield (
            ["lora.enable", "checkpoint.initial_load_path"],
            "lora.enable = true: adapters need trained weights to stand on; set checkpoint.initial_load_path to a run "
            "or a Hugging Face folder",
        )
    if len(lora.target_modules) > 1 and ALL_LINEAR in lora.target_modules:
        yield ["lora.target_modules"], f'lora.target_modules: "{ALL_LINEAR}" stands alone; leave the other names out'
    for name in lora.target_modules if config.model.name == "transformer" else ():
        if name != ALL_LINEAR and name.rpartition(".")[2] not in LINEARS:
            known = (*LINEARS, ALL_LINEAR)
            yield (
                ["lora.target_modules"],
                f"lora.target_modules: {name!r} is no linear layer of the blocks; they are {one_of(known)}"
                f"{nearest(name, known)}",
            )
    if config.quantize.linear.float8:
        yield (
            ["lora.enable", "quantize.linear.float8"],
            "quantize.linear.float8: is for layers whose weights are trained, which those of [lora] are not; leave one "
            "of the two out",
        )
    if config.checkpoint.export_hf_interval:
        yield (
            ["lora.enable", "checkpoint.export_hf_interval"],
            "checkpoint.export_hf_interval: no folders while adapters are trained; set it to 0, and write one of a "
            "step by `python -m titan_pt.tools.export STEP --merge --output DIR`",
        )
    if grpo := getattr(config, "grpo", None):
        yield from _rules_with_grpo(lora, grpo)


def _rules_with_grpo(lora: Lora, grpo: Any) -> Iterator[BrokenRule]:
    if lora.dropout:
        yield (
            ["lora.dropout"],
            f"lora.dropout = {lora.dropout:g}: grpo trains the model that sampled, of which dropout makes another: "
            "set it to 0",
        )
    if grpo.reference_reset != "none":
        yield (
            ["grpo.reference_reset", "lora.enable"],
            f'grpo.reference_reset = "{grpo.reference_reset}": the reference of [lora] is the frozen model, which '
            'stays as it is; set it to "none"',
        )
    if lora.path and grpo.kl_coef > 0:
        yield (
            ["lora.path", "grpo.kl_coef"],
            f"lora.path: with grpo.kl_coef = {grpo.kl_coef:g} the reference would be the model without these adapters; "
            "merge them, by checkpoint.initial_load_path = that folder, or set grpo.kl_coef = 0",
        )
