"""The section that the sft trainer brings: `[sft]`. No torch here."""

from collections.abc import Iterator
from typing import Any, Literal

from titan_pt.config.schema.job_config import JobConfig, Positive, Section


class Sft(Section):
    """[sft] supervised fine-tuning: questions or conversations, of which only the answers are learnt."""

    epochs: Positive | None = None
    """Passes over each source that has no max_epochs of its own. The run and its learning rate end with them, so give
    no training.steps or tokens beside it. The records are counted at the start."""
    on_bad_record: Literal["error", "skip"] = "error"
    """A record without its fields, with an empty answer or with roles in a wrong order: stop, or leave it out. What is
    left out is counted at the start and in metrics.jsonl."""
    overlong: Literal["error", "skip", "truncate"] = "error"
    """A record that is longer than a row of training.seq_len: stop, leave it out, or cut its end off."""


SECTIONS: dict[str, type[Section]] = {"sft": Sft}

# Few steps over few documents, none of which is cut from its question, at a tenth of pretraining's learning rate.
DEFAULTS: dict[str, dict[str, Any]] = {
    "data": {"packing": "best_fit"},
    "training": {"steps": 500, "document_mask": True},
    "optimizer": {"lr": 3e-5, "weight_decay": 0.0},
    "lr_scheduler": {"warmup_steps": 20, "decay_type": "cosine", "min_lr_factor": 0.1},
    "checkpoint": {"interval": 100},
}


def check(config: JobConfig) -> Iterator[tuple[list[str], str]]:
    """Broken rules between the fields of an sft run."""
    if not config.data.sources:
        yield ["data.sources"], 'data.sources: empty; add a [[data.sources]] table, such as name = "gsm8k"'
    for table, sources in (("data.sources", config.data.sources), ("validation.sources", config.validation.sources)):
        for i, source in enumerate(sources):
            if source.text_field is not None:
                yield (
                    [table],
                    f"{table}[{i}] ({source.name!r}): text_field has no effect on sft, which reads records of messages "
                    "or of prompt and completion; leave it out",
                )
    if not config.training.document_mask:
        yield (
            ["training.document_mask"],
            "training.document_mask = false: an answer would see the records before it in its row; leave it out",
        )
    if config.data.packing == "concat":
        yield (
            ["data.packing"],
            'data.packing = "concat": would cut answers from their questions at the ends of rows; leave it out',
        )
