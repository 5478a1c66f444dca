"""The readiness probe: before the first step, sample and see whether there is anything to learn from."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

from titan_pt.config.schema.grpo import GrpoConfig
from titan_pt.evaluation.task_evaluator import TaskEvaluator
from titan_pt.generation.sampling import Sampling
from titan_pt.protocols.context import TrainContext
from titan_pt.run.exit_codes import GaveUp
from titan_pt.tasks.rollouts import Group, Timing
from titan_pt.trainers.grpo.prompts import PromptLoader
from titan_pt.trainers.grpo.rollout_log import RolloutLog

logger = logging.getLogger("titan_pt")


@dataclass(frozen=True)
class Readiness:
    """Shares that say whether a policy can learn from its samples."""

    pass_rate: float
    """Share of right samples."""
    pass_at_group: float
    """Share of groups with a right sample."""
    signal: float
    """Share of groups with something to learn: groups whose rewards are all equal teach nothing."""
    truncated: float
    """Share of samples cut off at max_new_tokens."""
    reward_mean: float

    @property
    def over_generation(self) -> float:
        """Groups to sample for one that can be trained on."""
        return 1.0 / self.signal if self.signal else math.inf

    @property
    def advice(self) -> str:
        """Advice to a user whose policy has too few groups with something to learn."""
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
    """The readiness that sampled groups show."""
    right = [sum(each.strict for each in group.completions) for group in groups]
    completions = [each for group in groups for each in group.completions]
    return Readiness(
        pass_rate=sum(right) / len(completions),
        pass_at_group=sum(count > 0 for count in right) / len(groups),
        signal=sum(group.has_signal for group in groups) / len(groups),
        truncated=sum(each.truncated for each in completions) / len(completions),
        reward_mean=sum(each.reward for each in completions) / len(completions),
    )


def probe(
    context: TrainContext[GrpoConfig], evaluator: TaskEvaluator, sampling: Sampling, rollout_log: RolloutLog
) -> None:
    """Sample the first prompts of the run, log what there is to learn from, and stop where it is too little.

    The training takes the same prompts again.

    Raises:
        GaveUp: too few groups with different rewards, or letters no better than guessed, and grpo.probe is "stop".
        Preempted: on all ranks.
    """
    options, rollout = context.config.grpo, context.config.rollout
    prompts: PromptLoader = context.dataloader
    if not options.probes:
        return
    evaluator.sampler.timing = Timing()
    groups = evaluator.sampler.sample(prompts.take(options.probe_prompts), sampling, rollout.num_samples)
    prompts.rewind()
    rollout_log.write(0, groups, {})
    found = readiness(groups)
    logger.info(
        f"Readiness: {len(groups)} prompts x {rollout.num_samples} samples: pass rate {found.pass_rate:.2%}, "
        f"pass@{rollout.num_samples} {found.pass_at_group:.2%}, groups with signal {found.signal:.2%}, "
        f"{f'expected over-generation {found.over_generation:.1f}x, ' if found.signal else ''}"
        f"answers cut off {found.truncated:.2%}"
    )
    problems = []
    if found.signal < options.probe_min_signal:
        problems.append(
            f"{found.signal:.2%} of the groups have different rewards, less than grpo.probe_min_signal = "
            f"{options.probe_min_signal:.2%} (pass rate {found.pass_rate:.2%}, cut off {found.truncated:.2%}); "
            + (evaluator.sampler.timing.broken_rewards() or found.advice)
        )
    problems += _guessed_letters(evaluator, options.eval_prompts)
    for problem in problems:
        if options.probe == "stop":
            raise GaveUp(f'readiness probe: {problem}; grpo.probe = "warn" goes on all the same')
        logger.warning(f"readiness probe: {problem}")


def _guessed_letters(evaluator: TaskEvaluator, limit: int) -> list[str]:
    """Problems of multiple-choice tasks where the policy only guesses: nearly every group has signal, all noise."""
    problems = []
    for t, task in enumerate(evaluator.tasks):
        if not task.letters:
            continue
        held_out = evaluator.held_out(t, limit)
        accuracy = evaluator.letter_accuracy(task, held_out)
        chance = 1 / len(task.letters)
        bar = chance + 2 * math.sqrt(chance * (1 - chance) / len(held_out))
        logger.info(f"Readiness of {task.name}: log-likelihood accuracy {accuracy:.2%}; guessing gives {chance:.2%}")
        if accuracy < bar:
            problems.append(
                f"task {task.name!r}: log-likelihood accuracy {accuracy:.2%} on {len(held_out)} problems is not above "
                f"guessing ({chance:.2%}, with its spread {bar:.2%}): rewards would be noise; do supervised "
                "fine-tuning first"
            )
    return problems
