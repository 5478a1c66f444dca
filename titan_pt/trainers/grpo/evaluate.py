"""Accuracy on held-out problems during training: greedy, pass@k, and by likelihood where answers are letters."""

from collections.abc import Sequence
from dataclasses import dataclass

from titan_pt.config.schema.grpo import GrpoConfig
from titan_pt.evaluation.accuracy import Pair, accuracies, likeliest_letters, pass_rates
from titan_pt.generation.engine import RolloutEngine
from titan_pt.generation.sampling import Sampling, rollout_sampling
from titan_pt.protocols.context import TrainContext
from titan_pt.tasks.prompts import Prompt
from titan_pt.tasks.rollouts import RolloutSampler
from titan_pt.tasks.task import Task
from titan_pt.trainers.grpo.packing import Sample
from titan_pt.trainers.grpo.policy import loglikelihoods
from titan_pt.trainers.grpo.prompts import PromptLoader
from titan_pt.trainers.grpo.reference import Reference


@dataclass(frozen=True)
class Evaluator:
    """Evaluates on the same problems and the same noise each time; a `Validator`."""

    context: TrainContext[GrpoConfig]
    engine: RolloutEngine
    sampler: RolloutSampler
    reference: Reference | None

    def __call__(self) -> dict[str, float]:
        """eval/<task>/{accuracy, accuracy_official, accuracy_lenient, pass_at_1, pass_at_<k>, ...}. A collective."""
        prompts: PromptLoader = self.context.dataloader
        options, rollout = self.context.config.grpo, self.context.config.rollout
        self.engine.sync_weights(self.context.model)
        values: dict[str, float] = {}
        for t, task in enumerate(prompts.tasks):
            held_out = prompts.evaluation(t, options.eval_prompts)
            greedy = Sampling(rollout.max_new_tokens, temperature=0.0)
            found = accuracies(task, self.sampler.sample(held_out, greedy, 1))
            if options.eval_samples:
                # As in training, with noise of its own: step -1 is no step of a run.
                sampling = rollout_sampling(self.context.config, -1)
                groups = self.sampler.sample(held_out, sampling, options.eval_samples)
                found |= pass_rates(groups, sorted({1, options.eval_samples}))
            if task.letters:
                found["accuracy_loglikelihood"] = letter_accuracy(self.context, task, held_out)
            values |= {f"eval/{task.name}/{key}": value for key, value in found.items()}
        if self.reference:
            own = [values[f"eval/{task.name}/accuracy"] for task in prompts.tasks]
            self.reference.note_evaluation(sum(own) / len(own))
        return values


def letter_accuracy(context: TrainContext[GrpoConfig], task: Task, prompts: Sequence[Prompt]) -> float:
    """`likeliest_letters` of the policy. A collective."""

    def score(pairs: Sequence[Pair]) -> list[float]:
        return loglikelihoods(context, [Sample(asked, answer, (0.0,) * len(answer)) for asked, answer in pairs])

    return likeliest_letters(task, prompts, context.tokenizer, context.config.training.seq_len, score)
