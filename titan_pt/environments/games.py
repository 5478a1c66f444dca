"""What the built-in games share: their tasks, and a split of their secrets."""

from collections.abc import Callable, Sequence

from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.grpo import EvaluationTask, GrpoTask
from titan_pt.data.builtin.questions import is_held_out
from titan_pt.environments.protocol import CORRECT, Environment, Reply
from titan_pt.tasks.problems import Entry, plain_problems
from titan_pt.tasks.task import Problem, Task


def game(
    row: GrpoTask,
    environment: Environment,
    entries: tuple[Sequence[Entry], Sequence[Entry]],
    find_answer: Callable[[str], str | None],
) -> Task:
    """A task whose (training, evaluation) problems are games: right where the last turn names the secret."""

    def grade(completion: str, problem: Problem, _rule: str) -> bool:
        return find_answer(completion) == problem.gold

    train, evaluation = (plain_problems(part, row.name) for part in entries)
    return Task(
        name=row.name,
        train=train,
        evaluation=evaluation,
        grade=grade,
        find_answer=find_answer,
        open_ended=True,  # any word may be the secret
        environment=environment,
    )


def split_by_secret(row: GrpoTask, entries: Sequence[Entry]) -> tuple[list[Entry], list[Entry]]:
    """(training, evaluation) games, by a hash of their secrets.

    Raises:
        ConfigError: one of the two is empty.
    """
    train: list[Entry] = []
    evaluation: list[Entry] = []
    for entry in entries:
        (evaluation if is_held_out(entry.gold, row.holdout_fraction) else train).append(entry)
    if not evaluation or not (train or isinstance(row, EvaluationTask)):
        what, change = ("train", "lower") if evaluation else ("evaluate", "raise")
        raise ConfigError(
            f"holdout_fraction = {row.holdout_fraction:g} leaves none of {len(entries):,} games to {what} on; {change} "
            "it, or give more"
        )
    return train, evaluation


def answer(said: str, *, is_right: bool, is_last: bool, name: str, share: float) -> Reply:
    """The answer to a guess: the game is over where it is right or was the last one, and then the `share` counts."""
    if is_right or is_last:
        return Reply(done=True, rewards={CORRECT: float(is_right), name: share})
    return Reply([{"role": "user", "content": said}])
