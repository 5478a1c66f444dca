"""Tasks of reasoning_gym: with a small package in its place, and with the real one where it is installed."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from task_helpers import asked, open_row, problem_of, questions

STUB_FACTORY = """
import dataclasses, random

@dataclasses.dataclass
class Settings:
    seed: int = 0
    size: int = 500
    most: int = 50
    def validate(self):
        assert self.most > 0, "most must be positive"

class Sums:
    def __init__(self, config):
        self.config = config
    def __getitem__(self, index):
        rng = random.Random(self.config.seed + index)
        a, b = rng.randrange(self.config.most), rng.randrange(self.config.most)
        print("made", index)
        answer = f"{a + b}\\n{b + a}" if a % 2 else str(a + b)
        return {"question": f"{a} and {b}?", "answer": answer, "metadata": {"sum": a + b}}
    def score_answer(self, answer, entry):
        return 1.0 if answer == entry["answer"] else 0.5 if answer == str(entry["metadata"]["sum"]) else 0.0

class Unordered(Sums):
    def __getitem__(self, index):
        words = list({"red", "green", "blue", "white", "black", "brown"})
        random.shuffle(words)
        return {"question": f"{index} " + " ".join(words), "answer": None, "metadata": {}}

class Credulous(Sums):
    def score_answer(self, answer, entry):
        return min(1.0, 2.0 ** -abs(float(answer.split()[0]) - entry["metadata"]["sum"]))

class Changed(Sums):
    def score_answer(self, answer, entry):
        return 1.0 if answer == "0" + entry["answer"] else 0.0

class Failing(Sums):
    def __getitem__(self, index):
        raise ValueError("no such puzzle")

NAMES = {"chain_sum": Sums, "maze": Unordered, "gcd": Credulous, "lcm": Changed, "sudoku": Failing, "new": Sums}
DATASETS = {name: (kind, Settings) for name, kind in {**NAMES, "n_queens": Sums}.items()}
"""
STUB_PACKAGE = """
from .factory import DATASETS

def create_dataset(name, **options):
    kind, settings = DATASETS[name]
    config = settings(**options)
    config.validate()
    return kind(config)
"""


@pytest.fixture
def gym(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package in the place of reasoning_gym, also for the process that generates."""
    folder = tmp_path / "reasoning_gym"
    folder.mkdir()
    (folder / "__init__.py").write_text(STUB_PACKAGE)
    (folder / "factory.py").write_text(STUB_FACTORY)
    kept = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "reasoning_gym"}
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "reasoning_gym"]:
        del sys.modules[name]
    sys.modules.update(kept)


@pytest.mark.usefixtures("gym")
def test_reasoning_gym_asks_and_grades() -> None:
    opened = open_row("reasoning_gym:chain_sum", options={"size": 200, "most": 9}, holdout_fraction=0.3)
    train, evaluation = asked(opened.train), asked(opened.evaluation)
    assert not questions(opened.train) & questions(opened.evaluation)
    assert len({problem.question for problem in (*train, *evaluation)}) == len(train) + len(evaluation) <= 81
    grid = next(problem for problem in train if "\n" in problem.gold)
    assert opened.prompt(grid) == f'Question: {grid.question}\nEnd with a line "Answer: ...".\n'
    right = f"Let me see.\nAnswer: {grid.gold}"
    assert all(opened.grade(right, grid, rule) for rule in ("official", "strict", "lenient"))
    partly = f"Answer: {grid.gold.splitlines()[0]}"
    assert not opened.grade(partly, grid, "lenient"), "the package's 0.5 is not right"
    for unclear in (f"{right}\n{right}", grid.gold, f"#### {grid.gold}", f"So the Answer: {grid.gold}", "Answer:", ""):
        assert not opened.grade(unclear, grid, "strict")
    assert opened.grade(f"#### {grid.gold}", grid, "lenient")
    assert opened.find_answer is not None
    assert (opened.find_answer(partly), opened.find_answer("Answer: ")) == (grid.gold.splitlines()[0], None)
    other = open_row("reasoning_gym:chain_sum", seed=1000, options={"size": 200, "most": 9}, holdout_fraction=0.3)
    assert other.train.fingerprint != opened.train.fingerprint
    assert not questions(other.train) & questions(opened.evaluation), "nor across seeds"


@pytest.mark.usefixtures("gym")
def test_every_process_generates_the_same_problems() -> None:
    """Though the set goes through a Python set and the global random numbers."""
    first, second = (open_row("reasoning_gym:maze", options={"size": 30}, holdout_fraction=0.5) for _ in range(2))
    assert asked(first.train) == asked(second.train) and first.train.fingerprint == second.train.fingerprint
    assert first.train.get(0, 0).gold == ""


@pytest.mark.usefixtures("gym")
def test_wrong_settings_are_named() -> None:
    assert "has no 'chain_sums'; did you mean chain_sum?; choose one of the 5" in problem_of("reasoning_gym:chain_sums")
    assert problem_of("reasoning_gym").startswith("name: reasoning_gym has no ''")
    assert "has 'n_queens', but its scorer evaluates text as code; " in problem_of("reasoning_gym:n_queens")
    assert "has 'new', but its scorer was not checked; choose" in problem_of("reasoning_gym:new")
    assert "cannot be generated: ValueError: no such puzzle" in problem_of("reasoning_gym:sudoku")
    assert "level = 2 has no effect on reasoning_gym:chain_sum" in problem_of("reasoning_gym:chain_sum", level=2)


@pytest.mark.usefixtures("gym")
def test_scorers_that_cannot_be_trusted_are_refused() -> None:
    """Though their names are on the list: options or another version may change what they take."""
    assert "its grading takes 'nan' for right 40 of 40 times, as of reasoning_gym:gcd/" in problem_of(
        "reasoning_gym:gcd", options={"size": 60}
    )
    message = problem_of("reasoning_gym:lcm", options={"size": 60})
    assert "its own worked answer 'Answer: " in message and "is wrong by the rule official, strict, lenient" in message


@pytest.mark.usefixtures("gym")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mots": 3}, "options.mots: unknown; did you mean most?; chain_sum has seed, size, most"),
        ({"most": 0}, "options: chain_sum refuses them: AssertionError: most must be positive"),
        ({"size": 0}, "options.size = 0: want a number of problems from 1 on"),
        ({"size": True}, "options.size = true: want a number of problems from 1 on"),
        ({"size": "7"}, "options.size = '7': want a number of problems from 1 on"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    assert problem_of("reasoning_gym:chain_sum", options=options) == message


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    assert "pip install 'titan-pt[reasoning]'" in problem_of("reasoning_gym:chain_sum")


def test_the_real_package_works() -> None:
    factory = pytest.importorskip("reasoning_gym.factory")
    sets = importlib.import_module("titan_pt.tasks.reasoning_gym").SETS
    assert not sets - factory.DATASETS.keys() and len(sets) == 89
    for name in ("chain_sum", "mini_sudoku"):
        opened = open_row(f"reasoning_gym:{name}", options={"size": 50})
        assert not questions(opened.train) & questions(opened.evaluation)
        for problem in asked(opened.train):
            assert opened.grade(f"So.\nAnswer: {problem.gold}", problem, "strict")
            assert not opened.grade("So.\nAnswer: -1", problem, "lenient")
