"""Supervised fine-tuning: pretraining's step on records, of which only the answers are learnt."""

import functools
import json
import logging
from collections import Counter
from dataclasses import replace

from torch import nn

from titan_pt.components.lr_scheduler import build_lr_schedulers
from titan_pt.components.optimizer import build_optimizers
from titan_pt.components.tokenizer import Tokenizer
from titan_pt.config.errors import ConfigError
from titan_pt.config.run_size import RunSize
from titan_pt.config.schema.lora import lora_without_effect
from titan_pt.config.schema.sft import SftConfig
from titan_pt.data.sources.documents import sample_rows
from titan_pt.data.sources.opening import MixtureSource
from titan_pt.data.stream.loader import DataLoader
from titan_pt.data.stream.loader import build_dataloader as build_loader
from titan_pt.data.stream.mixture import TokenizedMixture
from titan_pt.distributed.world import World
from titan_pt.hf.chat import PROMPTS, TALKS
from titan_pt.protocols.context import Step, TrainContext, Validator
from titan_pt.protocols.registry import import_attribute
from titan_pt.protocols.trainer_spec import TrainerSpec
from titan_pt.run.signals import until_stopped
from titan_pt.trainers import pretrain
from titan_pt.trainers.sft.counting import count_steps
from titan_pt.trainers.sft.records import record_encoder, with_records
from titan_pt.trainers.summary import describe_run
from titan_pt.validate import build_validator as build_loss_validator

logger = logging.getLogger("titan_pt")

# MetricRows of a source that are read at the start; of a larger one the others are read when their turn comes.
_CHECKED = 20_000


def build_model(config: SftConfig, tokenizer: Tokenizer) -> nn.Module:
    """The model of pretraining on the meta device, with the adapters of [lora] where they are on."""
    model = pretrain.build_model(config, tokenizer)
    if config.lora.enable:
        import_attribute("titan_pt.lora.adapters:add_adapters")(model, config, config.lora)
    return model


def build_dataloader(config: SftConfig, tokenizer: Tokenizer, world: World, run_size: RunSize) -> DataLoader:
    """The records of `[[data.sources]]`, packed whole into rows.

    Raises:
        ConfigError: a record is bad or too long and is not to be left out, or none is left.
    """
    records = with_records(config, config.sft.epochs)
    loader = build_loader(records, tokenizer, world, run_size, record_encoder(config))
    found = [
        world.on_main(functools.partial(check_records, loader.mixture, source)) for source in loader.mixture.sources
    ]
    loader.also_identity["records"] = TALKS if any(found) else PROMPTS
    return loader


def adjust_run_size(config: SftConfig, world: World, run_size: RunSize, loader: DataLoader) -> RunSize:
    """Set the number of steps to those of sft.epochs, if that is given.

    Raises:
        ConfigError: the records cannot be counted.
    """
    epochs = config.sft.epochs
    if epochs is None:
        return run_size
    key, seq_len = f"sft.epochs = {epochs:g}", config.training.seq_len
    return replace(run_size, steps=world.on_main(lambda: count_steps(loader.mixture, run_size, seq_len, key)))


def describe(context: TrainContext[SftConfig], flops_per_token: float, peak: float | None) -> None:
    """Log what follows for the run, as in pretraining; with sft.epochs no warning that the sources end."""
    describe_run(context, flops_per_token, peak, warns=context.config.sft.epochs is None)
    for text in lora_without_effect(context.config.lora):
        logger.warning(text)


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


def build_validator(context: TrainContext[SftConfig], step: Step | None = None) -> Validator | None:
    """Build the validator of the loss on the answers of held-out records."""
    return build_loss_validator(replace(context, config=with_records(context.config)), step)


SPEC = TrainerSpec[SftConfig](
    name="sft",
    config_type=SftConfig,
    build_tokenizer=pretrain.SPEC.build_tokenizer,
    build_model=build_model,
    parallelize=pretrain.parallelize,
    build_optimizers=build_optimizers,
    build_lr_schedulers=build_lr_schedulers,
    build_dataloader=build_dataloader,
    adjust_run_size=adjust_run_size,
    describe=describe,
    build_step=pretrain.build_step,
    build_validator=build_validator,
    build_dry_run=pretrain.SPEC.build_dry_run,
)

__all__ = ["SPEC"]
