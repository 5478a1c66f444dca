"""Dynamic sampling: the groups of one step, sampled in rounds until enough of them have different rewards."""

import logging
import math
import time
from dataclasses import dataclass

from titan_pt.config.schema.grpo import Grpo
from titan_pt.generation.sampling import Sampling
from titan_pt.tasks.rollouts import Group, RolloutSampler
from titan_pt.trainers.grpo.prompts import PromptLoader

logger = logging.getLogger("titan_pt")

# A step that samples for longer says how far it is, so that nobody takes it for hung.
HEARTBEAT_SECONDS = 20.0


@dataclass(frozen=True)
class Collected:
    """Groups that one step sampled."""

    groups: list[Group]
    """All sampled groups."""
    chosen: list[int]
    """Numbers of the groups to train on, at most grpo.prompts_per_step; empty where a refill found none."""

    @property
    def trained(self) -> list[Group]:
        """The groups to train on."""
        return [self.groups[i] for i in self.chosen]


def collect(prompts: PromptLoader, sampler: RolloutSampler, sampling: Sampling, n: int, options: Grpo) -> Collected:
    """Sample the groups of one step.

    With grpo.dynamic_sampling = "refill" only groups with different rewards are chosen (DAPO, arXiv 2503.14476,
    section 3.2). Rounds go over all ranks and the first ones in the order of the prompts are chosen, so that the
    choice does not depend on the number of ranks. Prompts of groups beyond prompts_per_step come first in the next
    step. A step may end with fewer groups than that, after max_gen_batches rounds. With "filter" there is one round,
    of which those groups alone are chosen (zero-variance filtering, ScaleRL, arXiv 2510.13786), or all where there are
    none: their advantages are zeros. With a teacher all of the one round are chosen: it teaches by each completion.

    Raises:
        Preempted: on all ranks.
    """
    refill, takes_all = options.refills, options.dynamic_sampling == "none" or options.has_teacher
    groups: list[Group] = []
    chosen: list[int] = []
    last_line = time.monotonic()
    for number in range(1, (options.max_gen_batches if refill else 1) + 1):
        missing = options.prompts_per_step - len(chosen)
        count = math.ceil(missing * options.oversample) if refill else missing
        first = len(groups)
        groups += sampler.sample(prompts.take(count), sampling, n, first)
        chosen += [i for i in range(first, len(groups)) if groups[i].has_signal or takes_all]
        if len(chosen) >= options.prompts_per_step:
            break
        if time.monotonic() - last_line >= HEARTBEAT_SECONDS:
            last_line = time.monotonic()
            logger.info(
                f"step {sampling.step}: after {number} of {options.max_gen_batches} rounds of sampling "
                f"{len(chosen)} of {len(groups)} groups have different rewards, {options.prompts_per_step} are wanted"
            )
    if not chosen and not refill:
        chosen = list(range(len(groups)))
    surplus = chosen[options.prompts_per_step :]
    prompts.give_back([groups[i].prompt for i in surplus])
    return Collected(groups, chosen[: options.prompts_per_step])
