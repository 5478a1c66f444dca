"""Log lines before the first step: what runs, and what follows from the config for a run over text."""

import logging
from typing import Any

import torch

import titan_pt
from titan_pt.components.lr_scheduler import warmup_steps
from titan_pt.components.optimizer import describe_groups
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.data.truth_table import lines, plan_mixture, warnings
from titan_pt.protocols.context import TrainContext
from titan_pt.run.log import say
from titan_pt.run.log_lines import format_seconds

logger = logging.getLogger("titan_pt")

ASSUMED_MFU = 0.5


def describe_start(context: TrainContext[Any], peak: float | None) -> None:
    """Log versions, device, model, tokenizer and folder of a run.

    Args:
        peak: FLOP/s of one device; None where it is not known.
    """
    config, world = context.config, context.world
    warn_of_short_warmup(config, context.run_size.steps)
    if config.job.print_config:
        logger.info(f"Config:\n{config.to_toml()}")
    first = f"titan_pt {titan_pt.__version__}, torch {torch.__version__}: {config.job.description}"
    logger.info(first, extra={"panel": True})
    name = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else world.device.type
    each = f"{' measured' * (world.device.type == 'cpu')} in {config.training.mixed_precision_param} each"
    speed = f"{peak / 1e12:.2f} TFLOP/s{each}" if peak else "peak FLOP/s not known, so no MFU"
    say("Device", f"{world.size} x {name}, {speed}")
    total = sum(parameter.numel() for parameter in context.model.parameters())
    embedding = getattr(context.args, "num_embedding_parameters", 0)
    say(
        "Model",
        f"{config.model.name} {config.model.from_hf or config.model.flavor}: {total:,} parameters, "
        f"{total - embedding:,} without the embedding",
    )
    say("Tokenizer", f"{config.tokenizer.name}: {context.tokenizer.vocab_size:,} tokens")
    for i, group in enumerate(describe_groups(context.optimizer)):
        say("" if i else "Optimizer", group if i else f"{type(context.optimizer).__name__}, {group}")
    say("Folder", config.job.dump_folder)


def warn_of_short_warmup(config: JobConfig, steps: int) -> None:
    """Log a warning if the run is too short for lr_scheduler.warmup_steps."""
    section, warmup = config.lr_scheduler, warmup_steps(config, steps)
    if warmup < section.warmup_steps:
        end = f"{section.total_steps} steps of lr_scheduler.total_steps" if section.total_steps else f"{steps} steps"
        why = f"not below the {end}; shortened to {warmup}"
        logger.warning(f"lr_scheduler.warmup_steps = {section.warmup_steps}: {why}")


def describe_run(context: TrainContext, flops_per_token: float, peak: float | None, *, warns: bool = True) -> None:
    """Log what follows for a run over text: batch, steps, tokens, FLOPs, time, epochs.

    Args:
        warns: also of sources that end before the run, or are read very often.
    """
    config, world, run_size = context.config, context.world, context.run_size
    say(
        "Batch",
        f"{run_size.rows} rows of {config.training.seq_len} tokens, {run_size.local_rows} at once on each rank",
    )
    flops = run_size.tokens * flops_per_token
    seconds = flops / ((peak or 1.0) * world.size * ASSUMED_MFU)
    hours = f", {format_seconds(seconds)} at {ASSUMED_MFU:.0%} MFU" if peak else ""
    say(
        "Budget",
        f"{run_size.tokens:,} tokens in {run_size.steps:,} steps ({warmup_steps(config, run_size.steps)} of warm-up); "
        f"{flops:.3g} FLOPs{hours}",
    )
    _describe_sources(context, warns=warns)


def _describe_sources(context: TrainContext, *, warns: bool) -> None:
    """The truth table of the mixture, from a sample of each source's documents, and loud warnings."""
    context.raise_if_preempted()  # to read and tokenise a sample may take long
    tokens = context.run_size.tokens
    shares = plan_mixture(context.dataloader.mixture, tokens)
    say("Data", f"{context.run_size.num_streams} streams, weights by tokens (estimates):")
    for line in lines(shares, tokens):
        logger.info(f"  {line}", extra={"panel": "table"})
    for warning in warnings(shares, tokens) if warns else ():
        logger.warning(warning)
