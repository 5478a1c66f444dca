"""What follows from a config for a run over text, told before the first step."""

import logging

from titan_pt.components.flops import FORMULA
from titan_pt.components.lr_scheduler import warmup_steps
from titan_pt.components.metrics import format_seconds
from titan_pt.data.truth_table import lines, plan_mixture, warnings
from titan_pt.protocols.context import TrainContext

logger = logging.getLogger("titan_pt")

ASSUMED_MFU = 0.5


def describe_run(context: TrainContext, flops_per_token: float, peak: float | None, *, warns: bool = True) -> None:
    """Log what follows for a run over text: batch, steps, tokens, FLOPs, time, epochs.

    Args:
        warns: also of sources that end before the run, or are read very often.
    """
    config, world, run_size = context.config, context.world, context.run_size
    logger.info(
        f"Trainer is initialized with local batch size {config.training.local_batch_size}, global batch size "
        f"{run_size.rows}, gradient accumulation steps {run_size.accumulation_steps}, sequence length "
        f"{config.training.seq_len}, total steps {run_size.steps} (warmup {warmup_steps(config, run_size.steps)})"
    )
    flops = run_size.tokens * flops_per_token
    hours = ""
    if peak:
        seconds = flops / (peak * world.size * ASSUMED_MFU)
        hours = f"; {format_seconds(seconds)} at an assumed MFU of {ASSUMED_MFU:.0%}"
    logger.info(
        f"Budget: {run_size.tokens:,} tokens in {run_size.steps:,} steps of {run_size.tokens_per_step:,}; "
        f"{flops:.3g} FLOPs ({flops_per_token:.3g} per token: {FORMULA}){hours}"
    )
    _describe_sources(context, warns=warns)


def _describe_sources(context: TrainContext, *, warns: bool) -> None:
    """The truth table of the mixture, from a sample of each source's documents, and loud warnings."""
    context.raise_if_preempted()  # to read and tokenise a sample may take long
    tokens = context.run_size.tokens
    shares = plan_mixture(context.dataloader.mixture, tokens)
    logger.info(f"Data in {context.run_size.num_streams} streams, weights by tokens (estimates):")
    for line in lines(shares, tokens):
        logger.info(f"  {line}")
    for warning in warnings(shares, tokens) if warns else ():
        logger.warning(warning)
