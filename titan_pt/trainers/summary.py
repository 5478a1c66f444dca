"""What follows from a config for a run over text, told before the first step."""

import logging

from titan_pt.components.flops import FORMULA
from titan_pt.components.lr_scheduler import warmup_steps
from titan_pt.components.metrics import format_seconds
from titan_pt.data.truth_table import lines, plan_mixture, warnings
from titan_pt.protocols.step import StepParts

logger = logging.getLogger("titan_pt")

ASSUMED_MFU = 0.5


def describe_budget(parts: StepParts, flops_per_token: float, peak: float | None, *, warns: bool = True) -> None:
    """Log what follows for a run over text: batch, steps, tokens, FLOPs, time, epochs.

    Args:
        warns: also of sources that end before the run, or are read very often.
    """
    config, world, budget = parts.config, parts.world, parts.budget
    logger.info(
        f"Trainer is initialized with local batch size {config.training.local_batch_size}, global batch size "
        f"{budget.rows}, gradient accumulation steps {budget.accumulation_steps}, sequence length "
        f"{config.training.seq_len}, total steps {budget.steps} (warmup {warmup_steps(config, budget.steps)})"
    )
    flops = budget.tokens * flops_per_token
    hours = ""
    if peak:
        seconds = flops / (peak * world.size * ASSUMED_MFU)
        hours = f"; {format_seconds(seconds)} at an assumed MFU of {ASSUMED_MFU:.0%}"
    logger.info(
        f"Budget: {budget.tokens:,} tokens in {budget.steps:,} steps of {budget.tokens_per_step:,}; "
        f"{flops:.3g} FLOPs ({flops_per_token:.3g} per token: {FORMULA}){hours}"
    )
    _describe_sources(parts, warns=warns)


def _describe_sources(parts: StepParts, *, warns: bool) -> None:
    """The truth table of the mixture, from a sample of each source's documents, and loud warnings."""
    parts.raise_if_preempted()  # to read and tokenise a sample may take long
    tokens = parts.budget.tokens
    budgets = plan_mixture(parts.dataloader.corpus, tokens)
    logger.info(f"Data in {parts.budget.num_streams} streams, weights by tokens (estimates):")
    for line in lines(budgets, tokens):
        logger.info(f"  {line}")
    for warning in warnings(budgets, tokens) if warns else ():
        logger.warning(warning)
