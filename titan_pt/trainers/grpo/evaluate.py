"""Accuracy on held-out problems during training: greedy, pass@k, and by likelihood where answers are letters."""

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from titan_pt.components.tokenizer import Tokenizer
from titan_pt.config.grpo import Grpo, Rollout, section
from titan_pt.protocols.step import StepParts
from titan_pt.trainers.grpo.advantages import pass_at_k
from titan_pt.trainers.grpo.engine import RolloutEngine
from titan_pt.trainers.grpo.packing import Sample
from titan_pt.trainers.grpo.policy import loglikelihoods
from titan_pt.trainers.grpo.prompts import Prompt, PromptLoader
from titan_pt.trainers.grpo.reference import Reference
from titan_pt.trainers.grpo.rollouts import Group, Sampler
from titan_pt.trainers.grpo.sampling import Sampling
from titan_pt.trainers.grpo.tasks.task import Task


@dataclass(frozen=True)
class Evaluator:
    """Evaluates on the same problems and the same noise each time; a `Validator`."""

    parts: StepParts
    engine: RolloutEngine
    sampler: Sampler
    reference: Reference | None

    def __call__(self) -> dict[str, float]:
        """eval/<task>/{accuracy, accuracy_official, accuracy_lenient, pass_at_1, pass_at_<k>, ...}. A collective."""
        prompts: PromptLoader = self.parts.dataloader
        options, rollout = section(self.parts.config, Grpo), section(self.parts.config, Rollout)
        self.engine.sync_weights(self.parts.model)
        values: dict[str, float] = {}
        for t, task in enumerate(prompts.tasks):
            held_out = prompts.evaluation(t, options.eval_prompts)
            greedy = Sampling(rollout.max_new_tokens, temperature=0.0)
            found = accuracies(task, self.sampler.sample(held_out, greedy, 1))
            if options.eval_samples:
                sampling = evaluation_sampling(rollout, self.parts.config.debug.seed)
                groups = self.sampler.sample(held_out, sampling, options.eval_samples)
                found |= pass_rates(groups, options.eval_samples)
            if task.letters:
                found["accuracy_loglikelihood"] = letter_accuracy(self.parts, task, held_out)
            values |= {f"eval/{task.name}/{key}": value for key, value in found.items()}
        if self.reference:
            own = [values[f"eval/{task.name}/accuracy"] for task in prompts.tasks]
            self.reference.note_evaluation(sum(own) / len(own))
        return values


def evaluation_sampling(rollout: Rollout, seed: int) -> Sampling:
    """As in training, with noise of its own: step -1 is no step of a run."""
    return Sampling(
        rollout.max_new_tokens,
        temperature=rollout.temperature,
        top_k=rollout.top_k,
        top_p=rollout.top_p,
        seed=seed,
        step=-1,
    )


def accuracies(task: Task, greedy: Sequence[Group]) -> dict[str, float]:
    """Shares of right greedy completions by each rule; for letters also how often each is answered and is right."""
    count = len(greedy)
    rollouts = [(group.prompt.problem, group.rollouts[0]) for group in greedy]
    values = {
        "accuracy": sum(rollout.strict for _, rollout in rollouts) / count,
        "accuracy_official": sum(rollout.official for _, rollout in rollouts) / count,
        "accuracy_lenient": sum(rollout.lenient for _, rollout in rollouts) / count,
        "truncated_fraction": sum(rollout.truncated for _, rollout in rollouts) / count,
    }
    if not task.letters:
        return values
    answered = Counter(rollout.letter for _, rollout in rollouts)
    gold = Counter(problem.gold for problem, _ in rollouts)
    values["constant_letter_baseline"] = max(gold.values()) / count
    for letter in task.letters:
        values[f"answered_{letter}"] = answered[letter] / count
        right = sum(rollout.strict for problem, rollout in rollouts if problem.gold == letter)
        if gold[letter]:
            values[f"accuracy_{letter}"] = right / gold[letter]
    return values


def pass_rates(groups: Sequence[Group], k: int) -> dict[str, float]:
    """Means of the unbiased pass@1 and pass@k."""
    right = [sum(rollout.strict for rollout in group.rollouts) for group in groups]
    return {f"pass_at_{j}": sum(pass_at_k(c, k, j) for c in right) / len(right) for j in sorted({1, k})}


def letter_accuracy(parts: StepParts, task: Task, prompts: Sequence[Prompt]) -> float:
    """`likeliest_letters` of the policy. A collective."""
    score = functools.partial(loglikelihoods, parts)
    return likeliest_letters(task, prompts, parts.tokenizer, parts.config.training.seq_len, score)


def likeliest_letters(
    task: Task,
    prompts: Sequence[Prompt],
    tokenizer: Tokenizer,
    longest: int,
    score: Callable[[Sequence[Sample]], Sequence[float]],
) -> float:
    """Share of problems whose right letter is the likeliest after `task.letter_prefix`, as in lm-evaluation-harness.

    Args:
        longest: most tokens of a question with its answer; of a longer question the end is kept.
        score: the log-likelihoods of completions.
    """
    samples = []
    for prompt in prompts:
        question = (*prompt.token_ids, *tokenizer.encode(task.letter_prefix))
        for letter in task.letters:
            answer = tuple(tokenizer.encode(f" {letter}"))
            samples.append(Sample(question[-(longest - len(answer)) :], answer, (0.0,) * len(answer)))
    scores = score(samples)
    size = len(task.letters)
    right = 0
    for i, prompt in enumerate(prompts):
        own = scores[i * size : (i + 1) * size]
        right += task.letters[own.index(max(own))] == prompt.problem.gold
    return right / len(prompts)
