"""Before the first step: is there anything to learn from? Groups whose rewards are all equal teach nothing."""

import logging
import math

from titan_pt.config.schema.grpo import GrpoConfig
from titan_pt.generation.sampling import Sampling
from titan_pt.protocols.context import TrainContext
from titan_pt.run.exit_codes import GaveUp
from titan_pt.run.run_folder import run_folder
from titan_pt.tasks.rollouts import RolloutSampler
from titan_pt.trainers.grpo.evaluate import letter_accuracy
from titan_pt.trainers.grpo.prompts import PromptLoader
from titan_pt.trainers.grpo.readiness import readiness
from titan_pt.trainers.grpo.rollout_log import record

logger = logging.getLogger("titan_pt")


def probe(context: TrainContext[GrpoConfig], sampler: RolloutSampler, sampling: Sampling) -> None:
    """Sample the first prompts of the run, say what there is to learn from, and stop where it is too little.

    The prompts are not used up.

    Raises:
        GaveUp: too few groups with different rewards, or letters no better than guessed, and grpo.probe is "stop".
        Preempted: on all ranks.
    """
    options, rollout = context.config.grpo, context.config.rollout
    prompts: PromptLoader = context.dataloader
    if options.probe == "off":
        return
    groups = sampler.sample(prompts.take(options.probe_prompts), sampling, rollout.num_samples)
    prompts.rewind()
    if context.world.is_main and rollout.record_freq:
        record(run_folder(context.config), 0, groups, {})
    found = readiness(groups)
    logger.info(
        f"Readiness: {len(groups)} prompts x {rollout.num_samples} samples: pass rate {found.pass_rate:.2%}, "
        f"pass@{rollout.num_samples} {found.pass_at_group:.2%}, groups with signal {found.signal:.2%}, "
        f"expected over-generation {found.over_generation:.1f}x, answers cut off {found.truncated:.2%}"
    )
    problems = []
    if found.signal < options.probe_min_signal:
        problems.append(
            f"{found.signal:.2%} of the groups have different rewards, less than grpo.probe_min_signal = "
            f"{options.probe_min_signal:.2%} (pass rate {found.pass_rate:.2%}, cut off {found.truncated:.2%}); "
            + found.advice
        )
    problems += _guessed_letters(context)
    for problem in problems:
        if options.probe == "stop":
            raise GaveUp(f'readiness probe: {problem}; grpo.probe = "warn" goes on all the same')
        logger.warning(f"readiness probe: {problem}")


def _guessed_letters(context: TrainContext[GrpoConfig]) -> list[str]:
    """Tasks of letters where the policy is no better than guessing: nearly every group has signal, and it is noise."""
    options = context.config.grpo
    prompts: PromptLoader = context.dataloader
    problems = []
    for t, task in enumerate(prompts.tasks):
        if not task.letters:
            continue
        held_out = prompts.evaluation(t, options.eval_prompts)
        accuracy = letter_accuracy(context, task, held_out)
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
