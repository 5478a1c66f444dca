"""Accuracy of a model on tasks: greedy, pass@k, and by likelihood where answers are letters."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from titan_pt.components.tokenizer import Tokenizer
from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.grpo import Rollout
from titan_pt.distributed.world import World
from titan_pt.evaluation.accuracy import PromptAnswer, accuracies, likeliest_letters, pass_rates
from titan_pt.evaluation.intervals import wilson
from titan_pt.evaluation.scoring import likelihoods
from titan_pt.generation.engine import NonFiniteLogits, RolloutEngine
from titan_pt.generation.sampling import Sampling
from titan_pt.models.transformer.model import Transformer
from titan_pt.run.exit_codes import GaveUpTogether
from titan_pt.run.progress import Progress
from titan_pt.tasks.prompts import Prompt, PromptRules, held_out_prompts
from titan_pt.tasks.rollouts import GradingOptions, Group, RolloutSampler, Timing
from titan_pt.tasks.task import Task

logger = logging.getLogger("titan_pt")

T = TypeVar("T")

SHARES = ("accuracy", "accuracy_official", "accuracy_lenient", "accuracy_loglikelihood", "truncated_fraction")
"""Values that are shares of the problems."""


@dataclass(frozen=True)
class PassAtK:
    """Sampled completions of each problem, and the values of k for which pass@k is estimated from them."""

    sampling: Sampling
    num_samples: int
    ks: tuple[int, ...]


@dataclass(frozen=True)
class EvalResult:
    """Values of one task's evaluation."""

    problems: int
    """Number of problems."""
    values: dict[str, float]
    """accuracy (strict), accuracy_official, accuracy_lenient, accuracy_loglikelihood, pass_at_<k>, ..."""
    intervals: dict[str, tuple[float, float]]
    """95% confidence intervals of the values that are shares or means of the problems."""


@dataclass(frozen=True)
class TaskEvaluator:
    """Measures a model on held-out problems, the same ones with the same noise each time.

    Every method is a collective: call it on all ranks.
    """

    tasks: Sequence[Task]
    sampler: RolloutSampler
    held_out: Callable[[int, int], Sequence[Prompt]]
    """(number of a task, most prompts) -> its prompts."""
    tokenizer: Tokenizer
    longest: int
    """Most tokens that the model reads."""
    score: Callable[[Sequence[PromptAnswer]], Sequence[float]]
    """Log-likelihoods of answers by the model of the sampler's engine, on every rank."""
    world_size: int = 1

    def __call__(self, t: int, limit: int, max_new_tokens: int, pass_at_k: PassAtK | None = None) -> EvalResult:
        """Evaluate on at most `limit` problems of task number `t`.

        Args:
            max_new_tokens: most tokens of a greedy completion.

        Raises:
            GaveUpTogether: the grading failed on all completions, so nothing was measured; on all ranks.
        """
        task, prompts = self.tasks[t], self.held_out(t, limit)
        values = accuracies(task, self._sample(task, prompts, Sampling(max_new_tokens, temperature=0.0), 1))
        if task.letters:
            values["accuracy_loglikelihood"] = self.letter_accuracy(task, prompts)
        if pass_at_k:
            groups = self._sample(task, prompts, pass_at_k.sampling, pass_at_k.num_samples)
            values |= pass_rates(groups, pass_at_k.ks)
        shares = [name for name in values if name in SHARES or name.startswith("pass_at_")]
        return EvalResult(len(prompts), values, {name: wilson(values[name], len(prompts)) for name in shares})

    def _sample(self, task: Task, prompts: Sequence[Prompt], sampling: Sampling, n: int) -> list[Group]:
        # The counts of a step that this evaluation follows are kept.
        kept, self.sampler.timing = self.sampler.timing, Timing()
        try:
            own = -(-n * len(prompts) // self.world_size)
            with Progress(f"{task.name}, answers", "answers", own):
                groups = self.sampler.sample(prompts, sampling, n)
            problem = self.sampler.timing.broken_grading()
        finally:
            self.sampler.timing = kept
        if problem:
            raise GaveUpTogether(f"task {task.name}: {problem}; repair it: an accuracy of 0 would measure nothing")
        return groups

    def letter_accuracy(self, task: Task, prompts: Sequence[Prompt]) -> float:
        """Share of multiple-choice problems whose right letter is the likeliest."""
        own = -(-len(task.letters) * len(prompts) // self.world_size)
        with Progress(f"{task.name}, letters", "letters", own):
            return likeliest_letters(task, prompts, self.tokenizer, self.longest, self.score)


def build_task_evaluator(
    tasks: Sequence[Task],
    model: Transformer,
    engine: RolloutEngine,
    tokenizer: Tokenizer,
    world: World,
    max_new_tokens: int,
    *,
    episode_tokens: int | None = None,
    max_turns: int = 8,
    stop_requested: Callable[[], bool] = lambda: False,
    raise_if_preempted: Callable[[], None] = lambda: None,
) -> TaskEvaluator:
    """The evaluator of an unsharded model, with prompts that leave room for the completions.

    Args:
        model: on this rank's device, with the weights of the engine.
        max_new_tokens: most tokens of a completion, or of a turn.
        episode_tokens: most tokens of an episode; None: those of max_turns turns, in 3/4 of what the model reads.
        max_turns: most turns of an episode.
        stop_requested, raise_if_preempted: as of RolloutSampler.

    Raises:
        ConfigError: max_new_tokens leaves no room for a prompt.
    """
    longest = model.args.max_seq_len
    for name, tokens in (("max_new_tokens", max_new_tokens), ("max_episode_tokens", episode_tokens or 0)):
        if tokens >= longest:
            raise ConfigError(f"{name} = {tokens}: must be below what the model reads, {longest}")
    completion_tokens, episodes = max_new_tokens, None
    if any(task.environment for task in tasks):
        from titan_pt.environments.episodes import build_episodes

        completion_tokens = max(max_new_tokens, episode_tokens or min(max_turns * max_new_tokens, 3 * longest // 4))
        rollout = Rollout(max_new_tokens=max_new_tokens, max_episode_tokens=completion_tokens, max_turns=max_turns)
        episodes = build_episodes(tasks, tokenizer, engine, rollout, stop_requested)
    sampler = RolloutSampler(
        *(engine, tokenizer, tasks, world, GradingOptions()),
        stop_requested=stop_requested,
        raise_if_preempted=raise_if_preempted,
        episodes=episodes,
    )
    rules = PromptRules(tokenizer, longest - completion_tokens, "truncate")

    def held_out(t: int, limit: int) -> Sequence[Prompt]:
        prompts, too_long = held_out_prompts(tasks[t], t, rules, limit)
        if too_long and world.is_main:
            logger.warning(
                f"Task {tasks[t].name}: {too_long} of {len(prompts)} prompts are longer than {rules.longest} tokens; "
                "their beginnings are cut off"
            )
        return prompts

    def score(pairs: Sequence[PromptAnswer]) -> list[float]:
        own = pairs[world.rank :: world.size]
        by_rank = of_all_ranks(world, lambda: [found.logprob for found in likelihoods(model, own)])
        return [by_rank[i % world.size][i // world.size] for i in range(len(pairs))]

    return TaskEvaluator(tasks, sampler, held_out, tokenizer, longest, score, world.size)


def of_all_ranks(world: World, work: Callable[[], T]) -> list[T]:
    """What each rank's work gives, in rank order. A collective.

    Raises:
        NonFiniteLogits: that of any rank, on all.
    """
    mine: T | NonFiniteLogits
    try:
        mine = work()
    except NonFiniteLogits as error:
        mine = error
    found: list[T] = []
    for result in world.gather(mine):
        if isinstance(result, NonFiniteLogits):
            raise result
        found.append(result)
    return found
