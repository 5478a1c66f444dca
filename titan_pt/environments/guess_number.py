"""The game of guessing a number: each guess is told to be too low or too high."""

import re
from dataclasses import dataclass

from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.grpo import GrpoTask
from titan_pt.environments.games import answer, game, split_by_secret
from titan_pt.environments.protocol import CORRECT, Environment, EpisodeState, ModelTurn, Reply
from titan_pt.tasks.options import whole_numbers
from titan_pt.tasks.problems import Entry
from titan_pt.tasks.task import Task, refuse_unused

_MOST_NUMBERS = 100_000


@dataclass(frozen=True)
class GuessNumber(Environment):
    """Answers guesses; the reward "closeness" is 1 less the last guess's distance as a share of the range."""

    low: int
    high: int
    turns: int
    rewards = (CORRECT, "closeness")

    def step(self, state: EpisodeState, turn: ModelTurn) -> Reply:
        guess, secret = last_number(turn.text), int(state.problem.gold)
        if guess is None:
            said, share = f"Say a number from {self.low} to {self.high}.", 0.0
        else:
            said = f"{guess} is too {'low' if int(guess) < secret else 'high'}."
            share = max(0.0, 1.0 - abs(int(guess) - secret) / (self.high - self.low))
        is_last = state.turn + 1 >= self.turns
        return answer(said, is_right=guess == state.problem.gold, is_last=is_last, name="closeness", share=share)


def last_number(text: str) -> str | None:
    """The last whole number in a text, as it is written without leading zeros; of at most 18 digits."""
    found = re.findall(r"-?[0-9]+", text)
    return str(int(found[-1][:18])) if found else None


def build(row: GrpoTask, _seed: int) -> Task:
    """The task of all numbers from options.low to options.high, with options.turns guesses."""
    refuse_unused(row, "options", "holdout_fraction")
    options = whole_numbers(row.options, {"low": 1, "high": 20, "turns": 5}, {"turns": 1})
    low, high = options["low"], options["high"]
    if not low < high < low + _MOST_NUMBERS:
        raise ConfigError(f"options.low = {low}, high = {high}: want low < high, and at most {_MOST_NUMBERS:,} numbers")
    question = f"Guess the number from {low} to {high} that I think of."
    entries = [
        Entry(f"{row.name}/{low}-{high}:{secret}", question, str(secret), solution=str(secret))
        for secret in range(low, high + 1)
    ]
    return game(row, GuessNumber(low, high, options["turns"]), split_by_secret(row, entries), last_number)
