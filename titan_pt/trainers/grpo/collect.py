"""The groups of one step: sampled in rounds until enough of them have something to teach."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

from titan_pt.config.grpo import Grpo
from titan_pt.outcome import GaveUp
from titan_pt.trainers.grpo.probe import ADVICE
from titan_pt.trainers.grpo.prompts import PromptLoader
from titan_pt.trainers.grpo.rollouts import Group, Sampler
from titan_pt.trainers.grpo.sampling import Sampling

logger = logging.getLogger("titan_pt")


@dataclass(frozen=True)
class Collected:
    """What one step sampled."""

    groups: list[Group]
    """All of them."""
    chosen: list[int]
    """Numbers of the groups to train on, at most grpo.prompts_per_step."""

    @property
    def trained(self) -> list[Group]:
        return [self.groups[i] for i in self.chosen]


def collect(prompts: PromptLoader, sampler: Sampler, sampling: Sampling, n: int, options: Grpo) -> Collected:
    """Sample groups for one step.

    With grpo.dynamic_sampling = "refill" only groups with different rewards are chosen (DAPO, arXiv 2503.14476,
    section 3.2). Rounds go over all ranks and the first ones in the order of the prompts are chosen, so that the
    choice does not depend on the number of ranks. Prompts of groups beyond prompts_per_step come first in the next
    step.

    Raises:
        GaveUp: no group has different rewards after max_gen_batches rounds.
        Preempted: on all ranks.
    """
    refill = options.dynamic_sampling == "refill"
    groups: list[Group] = []
    chosen: list[int] = []
    for number in range(1, (options.max_gen_batches if refill else 1) + 1):
        missing = options.prompts_per_step - len(chosen)
        count = math.ceil(missing * options.oversample) if refill else missing
        first = len(groups)
        groups += sampler.sample(prompts.take(count), sampling, n, first)
        chosen += [i for i in range(first, len(groups)) if groups[i].has_signal or not refill]
        if len(chosen) >= options.prompts_per_step:
            break
        logger.info(
            f"step {sampling.step}: after {number} of {options.max_gen_batches} rounds of sampling {len(chosen)} of "
            f"{len(groups)} groups have different rewards, {options.prompts_per_step} are wanted"
        )
    if not chosen:
        raise GaveUp(
            f"step {sampling.step}: none of {len(groups)} groups has different rewards after "
            f"{options.max_gen_batches} rounds of sampling; {advice(groups)}"
        )
    surplus = chosen[options.prompts_per_step :]
    prompts.give_back([groups[i].prompt for i in surplus])
    return Collected(groups, chosen[: options.prompts_per_step])


def advice(groups: Sequence[Group]) -> str:
    """What to do where no group has signal."""
    solved = all(rollout.strict for group in groups for rollout in group.rollouts)
    return "every answer is right: take harder tasks or a higher level" if solved else ADVICE
