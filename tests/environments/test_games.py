"""The built-in games: what they answer, what they are split into, and mistakes in their rows."""

from pathlib import Path
from typing import Any

import pytest
from task_helpers import asked, open_row, problem_of

from titan_pt.environments.protocol import EpisodeState, ModelTurn, Reply
from titan_pt.environments.wordle import marked
from titan_pt.tasks.task import Task


def play(task: Task, gold: str, *guesses: str) -> list[Reply]:
    (problem,) = (each for each in [*asked(task.train), *asked(task.evaluation)] if each.gold == gold)
    assert task.environment
    return [
        task.environment.step(EpisodeState(problem, (), turn), ModelTurn(guess, 3))
        for turn, guess in enumerate(guesses)
    ]


def test_a_number_is_guessed() -> None:
    task = open_row("guess_number", options={"low": 1, "high": 11, "turns": 3})
    low, none, last = play(task, "6", " 4?", "no idea", " I say 9")
    assert low.messages[0]["content"] == "4 is too low." and none.messages[0]["content"] == "Say a number from 1 to 11."
    assert last.done and last.rewards == {"correct": 0.0, "closeness": pytest.approx(0.7)}
    assert play(task, "6", "06")[0] == Reply(done=True, rewards={"correct": 1.0, "closeness": 1.0})
    golds = [{problem.gold for problem in asked(part)} for part in (task.train, task.evaluation)]
    assert golds[0] | golds[1] == {str(number) for number in range(1, 12)} and not golds[0] & golds[1]


def test_a_word_is_guessed(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("crane\nSLATE\n\nspeed\nslate\nabide\nerase\nsteal\n")
    task = open_row("wordle", path=str(tmp_path / "words.txt"), options={"turns": 2}, holdout_fraction=0.5)
    first, last = play(task, "abide", "speed", "what?")
    assert first.messages[0]["content"] == "speed: --~-~" and last.rewards == {"correct": 0.0, "letters": 0.0}
    assert marked("speed", "erase") == "~-~~-" and marked("slate", "slate") == "+++++"
    assert len(task.train) + len(task.evaluation) == 6 and play(task, "slate", "Slate")[0].rewards["correct"] == 1.0


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("guess_number", {"options": {"hihg": 3}}, "options.hihg: unknown; did you mean high?; known are"),
        ("guess_number", {"options": {"low": "one"}}, "options.low = 'one': want a whole number, such as 1"),
        ("guess_number", {"options": {"turns": 0}}, "options.turns = 0: want a whole number from 1 on, such as 5"),
        ("guess_number", {"options": {"low": 5, "high": 5}}, "options.low = 5, high = 5: want low < high"),
        ("guess_number", {"rewards": {"closenes": 1.0}}, "rewards: 'closenes' is unknown; did you mean closeness?"),
        ("wordle", {}, "path is not set: want a file of words"),
        ("wordle", {"path": "words.txt"}, "words.txt, line 2: 'sea' is no word of options.letters = 5 letters"),
    ],
)
def test_mistakes_are_named(
    name: str, fields: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("words.txt").write_text("crane\nsea\n")
    assert message in problem_of(name, **fields)
