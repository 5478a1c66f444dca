"""Tasks opened for evaluation alone, with or without worked examples before each question."""

import re
from dataclasses import dataclass, replace
from typing import Literal

from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.grpo import EvaluationTask, GrpoTask
from titan_pt.data.permutation import permute
from titan_pt.tasks.task import Task, open_task


@dataclass(frozen=True)
class TaskRequest:
    """One task that a user asks to be evaluated."""

    name: str
    path: str | None = None
    """File of the problems; None: the hub's."""
    train_path: str | None = None
    """File of the problems that examples are taken from; None: the hub's."""
    level: int | None = None
    """Difficulty of arithmetic or sorting."""
    on_bad_row: Literal["error", "skip"] = "error"
    """Treatment of rows that cannot be read, or whose worked answers are graded wrong."""
    num_fewshot: int = 0
    """Worked examples before each question."""
    special_tokens: bool = False
    """Whether names of special tokens in the problems stand for these tokens."""
    chat: Literal["auto"] | bool = "auto"
    """Whether to ask through the chat template; "auto": where the model knows it."""
    system_prompt: str | None = None
    """Text of the first turn, or before a plain prompt."""


def open_eval_task(request: TaskRequest, seed: int, where: str, *, knows_chat: bool = False) -> Task:
    """The requested task; its prompts begin with the examples.

    Args:
        knows_chat: whether the model was trained on conversations.
        where: setting that names the task, for error messages.

    Raises:
        ConfigError: an unknown task, problems that cannot be read, too few examples.
    """
    kind = GrpoTask if request.num_fewshot else EvaluationTask
    row = kind(
        name=request.name,
        path=request.train_path,
        eval_path=request.path,
        level=request.level,
        special_tokens=request.special_tokens,
        on_bad_row=request.on_bad_row,
        chat=request.chat,
        system_prompt=request.system_prompt or None,
    )
    try:
        task = open_task(row, seed, knows_chat=knows_chat)
    except ConfigError as error:
        raise ConfigError(*(_in_terms_of(where, problem) for problem in error.problems)) from None
    return with_examples(task, request.num_fewshot) if request.num_fewshot else task


def _in_terms_of(where: str, problem: str) -> str:
    """A problem of [[grpo.tasks]] in terms of another table, or of the flags of tools.evaluate."""
    problem = problem.replace("grpo.tasks", where, 1)
    if where != "--tasks":
        return problem
    problem, own, _ = problem.partition("; a task of your own comes by register_task")
    if own:
        problem += "; a task of your own is evaluated in a run, by [[validation.tasks]]"
    problem = problem.replace("another path or eval_path", "another --train_data or --data")
    return re.sub(r"\b(eval_)?path = ", lambda key: "--data = " if key[1] else "--train_data = ", problem)


def with_examples(task: Task, count: int) -> Task:
    """A task with `count` worked problems before each question.

    The prompt is lm-evaluation-harness's: examples are turns of a conversation, or the task's prompt and its worked
    answer, then a blank line. The choice of the examples depends on the training problems alone. A completion ends
    where it begins another question.

    Raises:
        ConfigError: the task has fewer problems with worked answers.
    """
    size = len(task.train)
    problems = [task.train.get(permute(i, size, b"few-shot examples"), 0) for i in range(min(count, size))]
    if len(problems) < count or not all(problem.solution for problem in problems):
        worked = sum(bool(problem.solution) for problem in problems)
        raise ConfigError(
            f"--num_fewshot = {count}: {task.name} has {worked} problems with worked answers to take; give fewer"
        )
    begin = task.template.partition("{question}")[0].strip()

    def first_answer(completion: str) -> str:
        return completion.partition(begin)[0] if begin else completion

    find_letter = task.find_letter
    return replace(
        task,
        examples=tuple(problems),
        grade=lambda completion, problem, rule: task.grade(first_answer(completion), problem, rule),
        find_letter=(lambda completion: find_letter(first_answer(completion))) if find_letter else None,
    )
