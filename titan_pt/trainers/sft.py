"""Supervised fine-tuning: pretraining's step on records, of which only the answers are learnt."""

import functools
import logging
from collections import Counter
from dataclasses import replace

from titan_pt.components.preemption import until_stopped
from titan_pt.components.tokenizer import Tokenizer
from titan_pt.components.validate import Validator
from titan_pt.components.validate import build_validator as build_loss_validator
from titan_pt.config import sft
from titan_pt.config.budget import Budget
from titan_pt.config.errors import ConfigError
from titan_pt.config.grpo import section
from titan_pt.config.job_config import JobConfig
from titan_pt.config.sft import Sft
from titan_pt.data.corpus import Corpus, MixtureSource
from titan_pt.data.loader import DataLoader
from titan_pt.data.loader import build_dataloader as build_loader
from titan_pt.distributed.world import World
from titan_pt.protocols.step import Step, StepParts
from titan_pt.protocols.trainer_spec import register_trainer_spec
from titan_pt.trainers import pretrain
from titan_pt.trainers.conversations import Conversations, with_records

logger = logging.getLogger("titan_pt")

# Records of a source that are read at the start; of a larger one the others are read when their turn comes.
_CHECKED = 20_000


def build_dataloader(config: JobConfig, tokenizer: Tokenizer, world: World, budget: Budget) -> DataLoader:
    """The records of `[[data.sources]]`, packed whole into rows.

    Raises:
        ConfigError: a record is bad or too long and is not to be left out, or none is left.
    """
    options = section(config, Sft)
    encoder = Conversations(config.training.seq_len, options.on_bad_record, options.overlong)
    loader = build_loader(with_records(config), tokenizer, world, budget, encoder)
    for source in loader.corpus.sources:
        check = functools.partial(check_records, loader.corpus, source)
        world.together(check if world.is_main else _nothing)
    return loader


def _nothing() -> None:
    """What the other ranks do meanwhile."""


def check_records(corpus: Corpus, source: MixtureSource) -> None:
    """Read the records of a source, or the first of a large one, and log how many are left out and why.

    Raises:
        ConfigError: see `build_dataloader`.
    """
    rows = getattr(source.documents, "sample_rows", range(len(source.documents)))[:_CHECKED]
    count = len(rows)
    reasons: Counter[str] = Counter()
    first: dict[str, int] = {}
    for number in until_stopped(rows):
        text = source.documents[number]
        reason = corpus.encode(source, number, text).left_out if text else "empty"
        if reason is not None:
            reasons[reason] += 1
            first.setdefault(reason, number)
    if not reasons:
        return
    told = "; ".join(f"{times:,} times, first document {first[why]}: {why}" for why, times in reasons.most_common(5))
    if reasons.total() == count:
        raise ConfigError(f"data source {source.name!r}: all {count:,} records are left out: {told}")
    logger.warning(f"Data {source.name}: {reasons.total():,} of {count:,} records are left out: {told}")


def build_validator(parts: StepParts, step: Step | None = None) -> Validator | None:
    """Loss on the answers of held-out records."""
    return build_loss_validator(replace(parts, config=with_records(parts.config)), step)


SPEC = register_trainer_spec(
    replace(
        pretrain.SPEC,
        name="sft",
        sections=sft.SECTIONS,
        defaults=sft.DEFAULTS,
        check=sft.check,
        build_dataloader=build_dataloader,
        build_validator=build_validator,
    )
)

__all__ = ["SPEC"]
