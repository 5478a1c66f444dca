"""A game like Wordle: of each guess one is told which letters are right, and which are elsewhere in the word."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from titan_pt.config.errors import ConfigError, shown
from titan_pt.config.schema.grpo import GrpoTask
from titan_pt.data.sources.local import matching_files
from titan_pt.environments.games import answer, game, split_by_secret
from titan_pt.environments.protocol import CORRECT, Environment, EpisodeState, ModelTurn, Reply
from titan_pt.tasks.options import whole_numbers
from titan_pt.tasks.problems import Entry
from titan_pt.tasks.task import Task, refuse_unused


@dataclass(frozen=True)
class Wordle(Environment):
    """Answers guesses; the reward "letters" is the share of letters in place in the last guess."""

    letters: int
    turns: int
    rewards = (CORRECT, "letters")

    def step(self, state: EpisodeState, turn: ModelTurn) -> Reply:
        guess, secret = last_word(turn.text), state.problem.gold
        said, share = f"Say a word of {self.letters} letters.", 0.0
        if guess is not None and len(guess) == self.letters:
            marks = marked(guess, secret)
            said, share = f"{guess}: {marks}", marks.count("+") / self.letters
        is_last = state.turn + 1 >= self.turns
        return answer(said, is_right=guess == secret, is_last=is_last, name="letters", share=share)


def marked(guess: str, secret: str) -> str:
    """A mark for each letter: + in place, ~ elsewhere in the word, - not in it. A letter counts as often as it is."""
    left = Counter(there for here, there in zip(guess, secret, strict=True) if here != there)
    marks = []
    for here, there in zip(guess, secret, strict=True):
        mark = "+" if here == there else "~" if left[here] > 0 else "-"
        left[here] -= mark == "~"
        marks.append(mark)
    return "".join(marks)


def last_word(text: str) -> str | None:
    """The last word of letters in a text, in lower case."""
    found = re.findall(r"[^\W\d_]+", text)
    return found[-1].lower() if found else None


def build(row: GrpoTask, _seed: int) -> Task:
    """The task of the words in the files of `path`, one a line, of options.letters letters in options.turns guesses."""
    refuse_unused(row, "options", "holdout_fraction", "path", "eval_path")
    options = whole_numbers(row.options, {"letters": 5, "turns": 6}, {"letters": 1, "turns": 1})
    letters, turns = options["letters"], options["turns"]
    if row.path is None and row.eval_path is None:
        raise ConfigError('path is not set: want a file of words, one a line, such as path = "words.txt"')
    question = (
        f"Guess my word of {letters} letters. I mark each letter of a guess: + in place, ~ elsewhere, - not in it."
    )

    def entries(words: Iterable[str]) -> list[Entry]:
        return [Entry(f"{row.name}/{word}", question, word, solution=word) for word in words]

    words = _words(row.path, "path", letters, row.on_bad_row) if row.path else []
    if row.eval_path is None:
        return game(row, Wordle(letters, turns), split_by_secret(row, entries(words)), last_word)
    held_out = _words(row.eval_path, "eval_path", letters, row.on_bad_row)
    train = [word for word in words if word not in set(held_out)]
    return game(row, Wordle(letters, turns), (entries(train), entries(held_out)), last_word)


def _words(path: str, key: str, letters: int, on_bad_row: str) -> list[str]:
    """The different words of the files, in their order."""
    words: dict[str, None] = {}
    for file in matching_files(path, key):
        try:
            lines = Path(file).read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{key} = {path!r}: {file} cannot be read: {error}") from error
        for number, line in enumerate(lines, 1):
            word = line.strip().lower()
            if len(word) == letters and word == last_word(word):
                words[word] = None
            elif word and on_bad_row == "error":
                raise ConfigError(
                    f"{file}, line {number}: {shown(word)} is no word of options.letters = {letters} letters; remove "
                    'it, or set on_bad_row = "skip"'
                )
    if not words:
        raise ConfigError(f"{key} = {path!r}: holds no words of options.letters = {letters} letters, one a line")
    return list(words)
