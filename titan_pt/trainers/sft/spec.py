"""Supervised fine-tuning: pretraining's step on records, of which only the answers are learnt."""

import functools
import json
import logging
from collections import Counter
from dataclasses import replace

from titan_pt.components.tokenizer import Tokenizer
from titan_pt.config.errors import ConfigError
from titan_pt.config.run_size import RunSize
from titan_pt.config.schema import sft
from titan_pt.config.schema.grpo import section
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.config.schema.sft import Sft
from titan_pt.data.sources.documents import sample_rows
from titan_pt.data.sources.opening import MixtureSource
from titan_pt.data.stream.loader import DataLoader
from titan_pt.data.stream.loader import build_dataloader as build_loader
from titan_pt.data.stream.mixture import TokenizedMixture
from titan_pt.distributed.world import World
from titan_pt.hf.chat import PROMPTS, TALKS
from titan_pt.protocols.context import Step, TrainContext, Validator
from titan_pt.protocols.trainer_spec import register_trainer_spec
from titan_pt.run.signals import until_stopped
from titan_pt.trainers import pretrain
from titan_pt.trainers.sft.counting import count_steps
from titan_pt.trainers.sft.records import record_encoder, with_records
from titan_pt.trainers.summary import describe_run
from titan_pt.validate import build_validator as build_loss_validator

logger = logging.getLogger("titan_pt")

# MetricRows of a source that are read at the start; of a larger one the others are read when their turn comes.
_CHECKED = 20_000


def build_dataloader(config: JobConfig, tokenizer: Tokenizer, world: World, run_size: RunSize) -> DataLoader:
    """The records of `[[data.sources]]`, packed whole into rows.

    Raises:
        ConfigError: a record is bad or too long and is not to be left out, or none is left.
    """
    records = with_records(config, section(config, Sft).epochs)
    loader = build_loader(records, tokenizer, world, run_size, record_encoder(config))
    found = [
        world.on_main(functools.partial(check_records, loader.mixture, source)) for source in loader.mixture.sources
    ]
    loader.also_identity["records"] = TALKS if any(found) else PROMPTS
    return loader


def adjust_run_size(config: JobConfig, world: World, run_size: RunSize, loader: DataLoader) -> RunSize:
    """With sft.epochs as many steps as they take.

    Raises:
        ConfigError: the records cannot be counted.
    """
    epochs = section(config, Sft).epochs
    if epochs is None:
        return run_size
    key, seq_len = f"sft.epochs = {epochs:g}", config.training.seq_len
    return replace(run_size, steps=world.on_main(lambda: count_steps(loader.mixture, run_size, seq_len, key)))


def describe(context: TrainContext, flops_per_token: float, peak: float | None) -> None:
    """As of pretraining; with sft.epochs that the sources end is what was asked for."""
    describe_run(context, flops_per_token, peak, warns=section(context.config, Sft).epochs is None)


def check_records(mixture: TokenizedMixture, source: MixtureSource) -> bool:
    """Read the records of a source, or the first of a large one, and log how many are left out and why.

    Returns:
        Whether there are conversations among them.

    Raises:
        ConfigError: see `build_dataloader`.
    """
    rows = sample_rows(source.documents)[:_CHECKED]
    count = len(rows)
    reasons: Counter[str] = Counter()
    first: dict[str, int] = {}
    talks = False
    for number in until_stopped(rows):
        text = source.documents[number]
        reason = mixture.encode(source, number, text).left_out if text else "empty"
        if reason is not None:
            reasons[reason] += 1
            first.setdefault(reason, number)
        else:
            talks = talks or "messages" in json.loads(text)
    if not reasons:
        return talks
    common = reasons.most_common(5)
    told = "; ".join(f"{times:,} times, first {source.describe(first[why])}: {why}" for why, times in common)
    if reasons.total() == count:
        raise ConfigError(f"data source {source.name!r}: all {count:,} records are left out: {told}")
    logger.warning(f"Data {source.name}: {reasons.total():,} of {count:,} records are left out: {told}")
    return talks


def build_validator(context: TrainContext, step: Step | None = None) -> Validator | None:
    """Loss on the answers of held-out records."""
    return build_loss_validator(replace(context, config=with_records(context.config)), step)


SPEC = register_trainer_spec(
    replace(
        pretrain.SPEC,
        name="sft",
        sections=sft.SECTIONS,
        defaults=sft.DEFAULTS,
        check=sft.check,
        build_dataloader=build_dataloader,
        adjust_run_size=adjust_run_size,
        describe=describe,
        build_validator=build_validator,
    )
)

__all__ = ["SPEC"]
