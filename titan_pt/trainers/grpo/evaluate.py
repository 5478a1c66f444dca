"""Validation of GRPO: accuracy of the policy on the tasks' held-out problems, with the step's engine."""

from collections.abc import Sequence
from dataclasses import dataclass

from titan_pt.config.schema.grpo import GrpoConfig
from titan_pt.evaluation.accuracy import PromptAnswer
from titan_pt.evaluation.task_evaluator import PassAtK, TaskEvaluator
from titan_pt.generation.engine import RolloutEngine
from titan_pt.generation.sampling import rollout_sampling
from titan_pt.protocols.context import TrainContext
from titan_pt.tasks.rollouts import RolloutSampler
from titan_pt.trainers.grpo.collapse import HeldOutWatch
from titan_pt.trainers.grpo.packing import TrainSample
from titan_pt.trainers.grpo.policy import loglikelihoods
from titan_pt.trainers.grpo.prompts import PromptLoader
from titan_pt.trainers.grpo.reference import Reference


@dataclass(frozen=True)
class GrpoValidator:
    """Evaluates the policy on the same problems with the same noise each time; a `Validator`."""

    context: TrainContext[GrpoConfig]
    engine: RolloutEngine
    evaluator: TaskEvaluator
    reference: Reference | None
    """The reference that a plateau of the mean accuracy renews; None without a KL penalty."""
    watch: HeldOutWatch
    """What recognises a collapse, and forecasts the end."""

    def __call__(self) -> dict[str, float]:
        """eval/<task>/{accuracy, accuracy_official, ..., pass_at_1, pass_at_<k>}, forecast/... A collective."""
        config = self.context.config
        options, max_new_tokens = config.grpo, config.rollout.max_new_tokens
        pass_at_k = None
        if options.eval_samples:
            # Sampled as in training, with other noise: step -1 is no step of a run.
            ks = tuple(sorted({1, options.eval_samples}))
            pass_at_k = PassAtK(rollout_sampling(config, -1), options.eval_samples, ks)
        self.engine.sync_weights(self.context.model)
        values: dict[str, float] = {}
        accuracies = []
        for t, task in enumerate(self.evaluator.tasks):
            result = self.evaluator(t, options.eval_prompts, max_new_tokens, pass_at_k)
            found = {"problems": result.problems, **result.values}
            names = sorted(found, key=lambda name: name == "accuracy_loglikelihood")  # the last one in the log line
            values |= {f"eval/{task.name}/{name}": found[name] for name in names}
            accuracies.append(found["accuracy"])
        if self.reference:
            self.reference.note_evaluation(sum(accuracies) / len(accuracies))
        return values | self.watch.note_evaluation(values)


def build_evaluator(context: TrainContext[GrpoConfig], sampler: RolloutSampler) -> TaskEvaluator:
    """The evaluator of the policy, whose sharded model scores letters."""
    prompts: PromptLoader = context.dataloader

    def score(pairs: Sequence[PromptAnswer]) -> list[float]:
        return loglikelihoods(context, [TrainSample(asked, answer, (0.0,) * len(answer)) for asked, answer in pairs])

    return TaskEvaluator(
        prompts.tasks, sampler, prompts.evaluation, context.tokenizer, context.config.training.seq_len, score
    )
