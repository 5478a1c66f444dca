"""Tasks as an exam: opened for evaluation alone, asked with or without examples, and measured."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from titan_pt.components.tokenizer import Tokenizer
from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.grpo import EvaluationTask, GrpoTask
from titan_pt.data.permutation import permute
from titan_pt.distributed.world import World
from titan_pt.evaluation.accuracy import Pair, accuracies, likeliest_letters, pass_rates
from titan_pt.evaluation.intervals import wilson
from titan_pt.evaluation.scoring import likelihoods
from titan_pt.generation.sampling import Sampling
from titan_pt.models.transformer.model import Transformer
from titan_pt.tasks.prompts import PromptRules, held_out_prompts
from titan_pt.tasks.rollouts import RolloutSampler
from titan_pt.tasks.task import Task, open_task

logger = logging.getLogger("titan_pt")

SHARES = ("accuracy", "accuracy_official", "accuracy_lenient", "accuracy_loglikelihood", "truncated_fraction")
"""Values that are shares of the problems asked."""


@dataclass(frozen=True)
class ExamTask:
    """One task as a user asks for it."""

    name: str
    path: str | None = None
    """File of the problems; None: the hub's."""
    train_path: str | None = None
    """File of the problems that examples are taken from; None: the hub's."""
    level: int | None = None
    """Of arithmetic."""
    num_fewshot: int = 0


@dataclass(frozen=True)
class Draws:
    """Completions of each problem beside the greedy one."""

    sampling: Sampling
    num_samples: int
    ks: tuple[int, ...]


@dataclass(frozen=True)
class Measured:
    """One task's result."""

    problems: int
    values: dict[str, float]
    """As grpo's eval/<task>/...: accuracy (strict), accuracy_official, accuracy_lenient, pass_at_k, ..."""
    intervals: dict[str, tuple[float, float]]
    """95%, of the values that are shares or means of the problems."""


@dataclass(frozen=True)
class Suite:
    """Asks tasks and measures the answers. A collective: call it on all ranks."""

    tasks: Sequence[Task]
    sampler: RolloutSampler
    rules: PromptRules
    model: Transformer
    """Unsharded, of the sampler's engine."""
    world: World

    def __call__(self, t: int, limit: int, max_new_tokens: int, draws: Draws | None = None) -> Measured:
        """Ask at most `limit` problems of task number `t`, the same each time.

        Args:
            max_new_tokens: of the greedy completions.
        """
        task = self.tasks[t]
        prompts, too_long = held_out_prompts(task, t, self.rules, limit)
        if too_long and self.world.is_main:
            logger.warning(
                f"Task {task.name}: {too_long} of {len(prompts)} prompts are longer than {self.rules.longest} tokens; "
                "their beginnings are cut off"
            )
        values = accuracies(task, self.sampler.sample(prompts, Sampling(max_new_tokens, temperature=0.0), 1))
        if task.letters:
            longest = self.model.args.max_seq_len
            values["accuracy_loglikelihood"] = likeliest_letters(
                task, prompts, self.rules.tokenizer, longest, self._score
            )
        count = len(prompts)
        if draws:
            values |= pass_rates(self.sampler.sample(prompts, draws.sampling, draws.num_samples), draws.ks)
        names = [name for name in values if name in SHARES or name.startswith("pass_at_")]
        return Measured(count, values, {name: wilson(values[name], count) for name in names})

    def _score(self, samples: Sequence[Pair]) -> list[float]:
        """Each rank its share."""
        own = samples[self.world.rank :: self.world.size]
        found = likelihoods(self.model, own)
        shares = self.world.gather([one.logprob for one in found])
        return [shares[i % self.world.size][i // self.world.size] for i in range(len(samples))]


def open_exam(asked: ExamTask, seed: int, where: str) -> Task:
    """The task of a user's wish, whose prompts begin with the examples.

    Args:
        where: what names the task, for messages.

    Raises:
        ConfigError: an unknown task, problems that cannot be had, too few examples.
    """
    kind = GrpoTask if asked.num_fewshot else EvaluationTask
    row = kind(name=asked.name, path=asked.train_path, eval_path=asked.path, level=asked.level)
    try:
        task = open_task(row, seed)
    except ConfigError as error:
        raise ConfigError(*(problem.replace("grpo.tasks", where, 1) for problem in error.problems)) from None
    return with_examples(task, asked.num_fewshot) if asked.num_fewshot else task


def with_examples(task: Task, count: int) -> Task:
    """The task with worked problems in front of each question.

    The prompt is lm-evaluation-harness's: each example is the task's prompt and its worked answer, then a blank line.
    Which ones is a function of the training problems alone. A completion ends where it begins another question.

    Raises:
        ConfigError: the task has fewer problems with worked answers.
    """
    size = len(task.train)
    problems = [task.train.get(permute(i, size, b"few-shot examples"), 0) for i in range(min(count, size))]
    if len(problems) < count or not all(problem.solution for problem in problems):
        raise ConfigError(f"--num_fewshot = {count}: {task.name} has fewer problems with worked answers to train on")
    examples = "".join(f"{task.worked(problem)}\n\n" for problem in problems)
    begin = task.template.partition("{question}")[0].strip()

    def own(completion: str) -> str:
        return completion.partition(begin)[0] if begin else completion

    find_letter = task.find_letter
    return replace(
        task,
        template=examples + task.template,
        grade=lambda completion, problem, rule: task.grade(own(completion), problem, rule),
        find_letter=(lambda completion: find_letter(own(completion))) if find_letter else None,
    )


def build_suite(
    tasks: Sequence[Task],
    sampler: RolloutSampler,
    model: Transformer,
    tokenizer: Tokenizer,
    world: World,
    max_new_tokens: int,
) -> Suite:
    """The suite whose prompts leave room for the completions.

    Raises:
        ConfigError: there is none.
    """
    room = model.args.max_seq_len - max_new_tokens
    if room < 1:
        raise ConfigError(
            f"max_new_tokens = {max_new_tokens}: must be below what the model reads, {room + max_new_tokens}"
        )
    return Suite(tasks, sampler, PromptRules(tokenizer, room, "truncate"), model, world)
