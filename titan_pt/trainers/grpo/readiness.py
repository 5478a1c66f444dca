"""What a policy can do on sampled groups, and what to do where there is nothing to learn from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from titan_pt.tasks.rollouts import Group


@dataclass(frozen=True)
class Readiness:
    """Of sampled groups."""

    pass_rate: float
    """Share of right samples."""
    pass_at_group: float
    """Share of groups with a right sample."""
    signal: float
    """Share of groups with something to learn."""
    truncated: float
    """Share of samples cut off at max_new_tokens."""
    reward_mean: float

    @property
    def over_generation(self) -> float:
        """Groups to sample for one that can be trained on."""
        return 1.0 / self.signal if self.signal else math.inf

    @property
    def advice(self) -> str:
        """What to do where too few groups have anything to teach."""
        if self.truncated > 0.5 and self.reward_mean <= 0:
            return (
                f"{self.truncated:.0%} of the answers were cut off: raise rollout.max_new_tokens, or do supervised "
                "fine-tuning first on answers that end"
            )
        if self.pass_rate > 0.5:
            return "the tasks are solved: take harder tasks or a higher level"
        return (
            "do supervised fine-tuning on such answers first, take easier tasks or a lower level, sample more "
            "(rollout.num_samples), or check that the prompts ask for the form that is graded"
        )


def readiness(groups: Sequence[Group]) -> Readiness:
    """Of sampled groups."""
    right = [sum(rollout.strict for rollout in group.rollouts) for group in groups]
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    return Readiness(
        pass_rate=sum(right) / len(rollouts),
        pass_at_group=sum(count > 0 for count in right) / len(groups),
        signal=sum(group.has_signal for group in groups) / len(groups),
        truncated=sum(rollout.truncated for rollout in rollouts) / len(rollouts),
        reward_mean=sum(rollout.reward for rollout in rollouts) / len(rollouts),
    )
