"""Config and tokenizer of a dry run, whose tensors hold no numbers and whose documents no text."""

from collections.abc import Sequence
from typing import Any

from titan_pt.config.schema.grpo import Rollout
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.config.schema.sft import Sft


def for_dry_run(config: JobConfig) -> tuple[JobConfig, tuple[str, ...]]:
    """The config without what tensors without numbers cannot do, and what was changed."""
    updates: dict[str, dict[str, Any]] = {}
    notes = []
    if config.compile.enable:
        updates["compile"] = {"enable": False}
        notes.append("compile.enable is off here: there is nothing to compile")
    if config.model.sdpa_backend != "auto":
        updates["model"] = {"sdpa_backend": "auto"}
        notes.append(f'model.sdpa_backend = "{config.model.sdpa_backend}" is not tried: kernels belong to a device')
    if config.optimizer.name == "AdamW8bit":
        updates["optimizer"] = {"name": "AdamW", "implementation": "fused"}
        notes.append('optimizer.name = "AdamW8bit" is not tried: AdamW is, with moments of 32 bits')
    elif config.optimizer.implementation != "fused":
        updates["optimizer"] = {"implementation": "fused"}
        notes.append(f'optimizer.implementation = "{config.optimizer.implementation}" is not tried: "fused" is')
    if config.training.enable_cpu_offload:
        updates["training"] = {"enable_cpu_offload": False}
        notes.append("training.enable_cpu_offload is off here: parameters, gradients and optimizer are counted too")
    for name, section in config:
        if isinstance(section, Sft) and section.epochs is not None:
            notes.append(
                f"sft.epochs = {section.epochs:g}: its steps follow from the data; training.steps stands for them"
            )
        if isinstance(section, Rollout) and section.compile:
            updates[name] = {"compile": False}
            notes.append("rollout.compile is off here: there is nothing to compile")
    sections = {name: getattr(config, name).model_copy(update=update) for name, update in updates.items()}
    return config.model_copy(update=sections), tuple(notes)


class SizedTokenizer:
    """A tokenizer that has only a vocabulary size; it can neither encode nor decode."""

    special_ids: dict[str, int] = {}  # noqa: RUF012
    chat_template: str | None = None

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size, self.eos_id = vocab_size, vocab_size - 1
        self.fingerprint = f"size-{vocab_size}"

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError("there is no text in a dry run")

    def decode(self, ids: Sequence[int]) -> str:
        raise NotImplementedError("there is no text in a dry run")
