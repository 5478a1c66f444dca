"""The config of supervised fine-tuning: `[sft]` beside the common tables. No torch here."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from titan_pt.config.schema.job_config import BrokenRule, JobConfig
from titan_pt.config.schema.lora import Lora, lora_rules
from titan_pt.config.schema.section import Positive, Section


class Sft(Section):
    """[sft] supervised fine-tuning: questions or conversations, of which only the answers are learnt."""

    epochs: Positive | None = None
    """Passes over each source that has no max_epochs of its own. The run and its learning rate end with them, so give
    no training.steps or tokens beside it. The records are counted at the start."""
    on_bad_record: Literal["error", "skip"] = "error"
    """A record without its fields, with an empty answer or with roles in a wrong order, or a row of gsm8k or medqa
    whose own worked answer grpo would grade wrong: stop, or leave it out. What is left out is counted at the start and
    in metrics.jsonl."""
    overlong: Literal["error", "skip", "truncate"] = "error"
    """A record that is longer than a row of training.seq_len: stop, leave it out, or cut its end off."""


class SftConfig(JobConfig):
    """A run of supervised fine-tuning."""

    # Few steps over few documents, none of which is cut from its question, at a tenth of pretraining's learning rate.
    DEFAULTS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "data": {"packing": "best_fit"},
        "training": {"steps": 500, "document_mask": True},
        "optimizer": {"lr": 3e-5, "weight_decay": 0.0},
        "lr_scheduler": {"warmup_steps": 20, "decay_type": "cosine", "min_lr_factor": 0.1},
        "checkpoint": {"interval": 100},
    }
    PAIRS = (*JobConfig.PAIRS, ("sft.epochs", "training.steps"), ("sft.epochs", "training.tokens"))

    sft: Sft = Sft()
    lora: Lora = Lora()

    def broken_rules(self) -> Iterator[BrokenRule]:
        """Yield the broken rules between the fields of an sft run."""
        yield from lora_rules(self, self.lora)
        if not self.data.sources:
            yield ["data.sources"], 'data.sources: empty; add a [[data.sources]] table, such as name = "gsm8k"'
        for table, sources in (("data.sources", self.data.sources), ("validation.sources", self.validation.sources)):
            for i, source in enumerate(sources):
                if source.text_field is not None:
                    yield (
                        [table],
                        f"{table}[{i}] ({source.name!r}): text_field has no effect on sft, which reads records of "
                        "messages or of prompt and completion; leave it out",
                    )
        if not self.training.document_mask:
            yield (
                ["training.document_mask"],
                "training.document_mask = false: an answer would see the records before it in its row; leave it out",
            )
        if self.data.packing == "concat":
            yield (
                ["data.packing"],
                'data.packing = "concat": would cut answers from their questions at the ends of rows; leave it out',
            )
