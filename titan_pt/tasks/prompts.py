"""Prompts of problems as tokens, and the fixed prompts to evaluate on."""

import logging
from dataclasses import dataclass, field, replace

from titan_pt.components.tokenizer import Tokenizer, name_in
from titan_pt.config.errors import ConfigError
from titan_pt.data.permutation import permute
from titan_pt.hf.chat import as_text, chat_text, chat_tokens, prompt_tokens
from titan_pt.tasks.task import Problem, Task

logger = logging.getLogger("titan_pt")


@dataclass(frozen=True)
class Prompt:
    """One problem as text and tokens."""

    task: int
    """Number of the task in the list of tasks."""
    draw: int
    """Number of the prompt within its task: how many came before it; in evaluation the problem's index."""
    problem: Problem
    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class PromptRules:
    """Rules by which a problem becomes tokens."""

    tokenizer: Tokenizer
    longest: int
    """Most tokens of a prompt: training.seq_len without rollout.max_new_tokens."""
    overlong: str
    """Treatment of longer prompts: "error", "skip" or "truncate", see rollout.overlong_prompts."""
    told: set[str] = field(default_factory=set)
    """Tasks whose problems hold names of special tokens; each is logged once."""

    def encode(self, task: Task, problem: Problem) -> tuple[tuple[int, ...] | None, bool]:
        """(tokens of a problem's prompt, or None where it is left out; whether it is too long).

        Raises:
            ConfigError: the prompt is empty, or too long and rollout.overlong_prompts is "error".
        """
        self._note_names(task, problem)
        asked, written = as_asked(self.tokenizer, task, problem)
        if task.chat:
            named = task.special_tokens or not task.has_own_opening  # what an environment says names none
            ids = chat_tokens(self.tokenizer, asked.messages(written), named=named, tools=task.tools)
        else:
            text = asked.prompt(written, lambda said: said if task.special_tokens else as_text(self.tokenizer, said))
            ids = prompt_tokens(self.tokenizer, text, named=True)
        if not ids:
            raise ConfigError(f"grpo.tasks ({task.name!r}): the prompt of {problem.id} is empty")
        if len(ids) <= self.longest:
            return tuple(ids), False
        if self.overlong == "error":
            raise ConfigError(
                f"grpo.tasks ({task.name!r}): the prompt of {problem.id} has {len(ids)} tokens, and training.seq_len "
                f"leaves {self.longest} beside the completion; raise training.seq_len, lower "
                'rollout.max_new_tokens, or set rollout.overlong_prompts = "skip" or "truncate"'
            )
        return (tuple(ids[-self.longest :]) if self.overlong == "truncate" else None), True

    def _note_names(self, task: Task, problem: Problem) -> None:
        name = None if task.special_tokens else name_in(self.tokenizer, problem.question)
        if name is not None and task.name not in self.told:
            self.told.add(task.name)
            logger.warning(
                f"task {task.name!r}: {problem.id} holds {name!r}, which is read as text; special_tokens = true in its "
                "table reads names of special tokens in its problems as these tokens"
            )


def as_asked(tokenizer: Tokenizer, task: Task, problem: Problem) -> tuple[Task, Problem]:
    """A task and a problem for prompts in which the task's own texts may name special tokens, and its problems' not."""
    if task.special_tokens:
        return task, problem

    def written(one: Problem) -> Problem:
        return replace(one, question=as_text(tokenizer, one.question), solution=as_text(tokenizer, one.solution))

    return replace(task, examples=tuple(map(written, task.examples))), written(problem)


def prompt_text(tokenizer: Tokenizer, task: Task, problem: Problem) -> str:
    """The text of a problem's prompt, by the chat template where the task is asked through it."""
    return chat_text(tokenizer, task.messages(problem), tools=task.tools) if task.chat else task.prompt(problem)


def held_out_prompts(task: Task, t: int, rules: PromptRules, limit: int) -> tuple[list[Prompt], int]:
    """(at most `limit` held-out prompts of a task, the same each time; number of prompts that were too long).

    Args:
        t: number of the task in the list of tasks.

    Raises:
        ConfigError: all prompts are too long.
    """
    size = len(task.evaluation)
    order = range(size) if size <= limit else (permute(i, size, b"evaluation") for i in range(size))
    prompts: list[Prompt] = []
    num_too_long = 0
    for index in order:
        if len(prompts) == limit:
            break
        problem = task.evaluation.get(index, 0)
        ids, too_long = rules.encode(task, problem)
        num_too_long += too_long
        if ids is not None:
            prompts.append(Prompt(t, index, problem, prompt_text(rules.tokenizer, task, problem), ids))
    if not prompts:
        raise ConfigError(
            f"grpo.tasks ({task.name!r}): all {size} problems to evaluate on are longer than {rules.longest} tokens"
        )
    return sorted(prompts, key=lambda prompt: prompt.draw), num_too_long
