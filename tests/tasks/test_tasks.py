"""Prompts and grading of each task, registered tasks, and the settings of a row."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from task_helpers import CASES, asked, open_row, problem_of, problems_of, questions, write_rows

from titan_pt.components.tokenizer import ByteTokenizer
from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.grpo import GrpoTask
from titan_pt.data.builtin.arithmetic import LEVELS, num_problems
from titan_pt.data.builtin.sorting import LEVELS as SORTING_LEVELS
from titan_pt.environments.guess_number import GuessNumber
from titan_pt.environments.protocol import Environment
from titan_pt.tasks import arithmetic, rewards, sorting, task
from titan_pt.tasks.problems import Entry, plain_problems
from titan_pt.tasks.task import Problem, Task, open_task, register_task
from titan_pt.trainers.grpo.spec import stop_tokens

# MedQA


@pytest.fixture
def medqa(tmp_path: Path) -> Callable[..., Task]:
    paths = {
        "path": write_rows(tmp_path / "train.jsonl", CASES[4:]),
        "eval_path": write_rows(tmp_path / "test.jsonl", CASES[:4]),
    }
    return lambda seed=1, **fields: open_row("medqa", seed, **paths, **fields)


def right_text(problem: Problem) -> str:
    (line,) = [line for line in problem.question.split("\n") if line.startswith(f"{problem.gold}. ")]
    return line.removeprefix(f"{problem.gold}. ")


def test_options_are_shuffled_at_each_visit(medqa: Callable[..., Task]) -> None:
    train, again, other = medqa().train, medqa().train, medqa(seed=2).train
    golds: Counter[str] = Counter()
    orders = set()
    for index in range(len(train)):
        row = CASES[4 + index]
        for visit in range(30):
            problem = train.get(index, visit)
            lines = problem.question.split("\n")
            assert lines[0] == row["question"] and [line[:3] for line in lines[1:]] == ["A. ", "B. ", "C. ", "D. "]
            assert {line[3:] for line in lines[1:]} == set(row["options"].values())
            assert right_text(problem) == row["answer"]
            assert problem == again.get(index, visit)
            golds[problem.gold] += 1
            orders.add(tuple(line[8] for line in lines[1:]))
    assert len(orders) == 24
    visits = sum(golds.values())
    assert all(abs(count - visits / 4) < 5 * (visits * 3 / 16) ** 0.5 for count in golds.values())
    assert asked(train, 0) != asked(train, 1) and asked(train, 0) != asked(other, 0)


def test_evaluation_is_never_shuffled(medqa: Callable[..., Task]) -> None:
    opened, fixed = medqa(), medqa(shuffle_options=False)
    for visit in (0, 3):
        assert [problem.gold for problem in asked(opened.evaluation, visit)] == ["A", "B", "C", "D"]
        assert [problem.gold for problem in asked(fixed.train, visit)] == [row["answer_idx"] for row in CASES[4:]]


def test_medqa_asks_and_grades_letters(medqa: Callable[..., Task]) -> None:
    opened = medqa(rewards={"correct": 1.0, "format": 0.5})
    problem = opened.evaluation.get(2, 0)
    assert opened.prompt(problem) == (
        "Question: A patient of 2 years coughs. Which?\n"
        "A. drug 0 of 2\nB. drug 1 of 2\nC. drug 2 of 2\nD. drug 3 of 2\n"
    )
    assert (opened.letters, opened.letter_prefix) == (("A", "B", "C", "D"), "Answer:")
    assert opened.find_letter is not None
    found = {"It coughs.\nAnswer: C": "C", "Answer: C then": "C", "Answer: E": None, "C": None, "Answer: C\nso": None}
    for completion, letter in found.items():
        assert opened.find_letter(completion) == letter
        sample = rewards.Sample(problem, completion, 5, 10, truncated=False)
        parts = rewards.score(sample, opened, 1.0).parts
        assert parts == {"correct": float(letter == "C"), "format": float(letter is not None)}
    assert opened.grade("I say (C)", problem, "lenient") and not opened.grade("I say (C)", problem, "strict")


def test_options_of_many_lines_and_five_letters(tmp_path: Path) -> None:
    row = {"question": "Which?\nSay.", "options": {letter: f"{letter}\n  x" for letter in "ABCDE"}, "answer_idx": "E"}
    path = write_rows(tmp_path / "x.jsonl", [row, {**row, "question": "Who?"}, {**row, "question": "When?"}])
    opened = open_row("medqa", path=path, holdout_fraction=0.5)
    assert opened.letters == tuple("ABCDE")
    assert opened.evaluation.get(0, 0).question.endswith("\nA. A x\nB. B x\nC. C x\nD. D x\nE. E x")


# Arithmetic


@pytest.mark.parametrize("level", sorted(LEVELS))
def test_arithmetic_levels_are_right_and_split(level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "_MOST_PROBLEMS", 3000)
    opened, other_seed = open_row("arithmetic", level=level), open_row("arithmetic", seed=5, level=level)
    train, evaluation = asked(opened.train), asked(opened.evaluation)
    assert len(train) + len(evaluation) == min(num_problems(level), 3000) == len({p.id for p in (*train, *evaluation)})
    assert not questions(opened.train) & questions(opened.evaluation)
    assert 0.04 < len(evaluation) / (len(train) + len(evaluation)) < 0.2
    assert asked(other_seed.train) == train
    for problem in (*train[:50], *evaluation[:50]):
        _, _, a, operation, b = problem.question.removesuffix("?").split()
        result = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[operation]
        assert problem.gold == str(result)
        assert opened.grade(f" {a} {operation} {b} = {result}\n#### {result}\n", problem, "strict")
        assert not opened.grade(f"#### {result + 1}", problem, "strict")


@pytest.mark.parametrize("level", sorted(SORTING_LEVELS))
def test_sorting_levels_are_right_and_split(level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sorting, "_MOST_PROBLEMS", 3000)
    opened, other_seed = open_row("sorting", level=level), open_row("sorting", seed=5, level=level)
    train, evaluation = asked(opened.train), asked(opened.evaluation)
    assert len(train) + len(evaluation) == 3000 == len({p.question for p in (*train, *evaluation)})
    assert not questions(opened.train) & questions(opened.evaluation)
    assert asked(other_seed.train) == train
    for problem in (*train[:50], *evaluation[:50]):
        digits = problem.question.removeprefix("Sort ").removesuffix(".").split()
        assert f"lists of {len(digits)} digits" == SORTING_LEVELS[level]
        assert problem.gold == " ".join(map(str, sorted(map(int, digits))))
        assert opened.grade(f" {problem.gold}\n", problem, "strict")
        listed = problem.gold.replace(" ", ", ")
        for said in (problem.gold[2:], problem.gold + " 9", f"{problem.gold}\n{problem.gold}", listed):
            assert not opened.grade(said, problem, "strict")
        assert opened.grade(f"{listed}\nThat is all 6.", problem, "lenient")
        for other in {problem.gold[::-1], " ".join(digits)} - {problem.gold}:
            assert not any(opened.grade(other, problem, rule) for rule in ("strict", "official", "lenient"))
    message = problem_of("sorting", level=9)
    assert message.startswith("level = 9: unknown; allowed are 1: lists of 4 digits; ")


def test_the_default_level_is_1(caplog: pytest.LogCaptureFixture) -> None:
    assert asked(open_row("arithmetic").train) == asked(open_row("arithmetic", level=1).train)
    assert open_row("arithmetic").train.fingerprint != open_row("arithmetic", level=2).train.fingerprint
    message = problem_of("arithmetic", level=99)
    assert message.startswith("level = 99: unknown; allowed are 1: ") and all(
        text in message for text in LEVELS.values()
    )


# The registry and the row's own settings


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(task._TASKS, "_registered", dict(task._TASKS._registered))
    return


def countries(row: GrpoTask, seed: int) -> Task:
    problems = [Entry(f"{row.name}/{i}", f"Where is town {i}?", "here") for i in range(int(row.options.get("size", 6)))]
    return Task(
        name=row.name,
        train=plain_problems(problems[2:], row.name),
        evaluation=plain_problems(problems[:2], row.name),
        grade=lambda completion, problem, rule: completion == problem.gold,
        template="{question} In {question}",
        stop=("\n",),
        rewards={"correct": 2.0},
    )


@pytest.mark.usefixtures("registry")
def test_registered_tasks_take_a_rows_settings() -> None:
    register_task("countries", countries)
    opened = open_row("countries:few", options={"size": 5}, level=3)
    assert (len(opened.train), opened.stop, opened.rewards) == (3, ("\n",), {"correct": 2.0})
    problem = opened.train.get(0, 0)
    assert opened.prompt(problem) == "Where is town 2? In Where is town 2?"
    changed = open_row("countries", prompt_template="{question}!", stop=["."], rewards={"correct": 1.0, "length": 0.1})
    assert (changed.prompt(problem), changed.stop) == ("Where is town 2?!", (".",))
    assert changed.rewards == {"correct": 1.0, "length": 0.1}
    assert problem_of("countries", options={"size": 2}) == "there are no problems to train on"
    assert problem_of("countries", rewards={"format": 1.0}).startswith('rewards: "format" is of no use')
    with pytest.raises(ValueError, match="'countries' is registered already"):
        register_task("countries", countries)
    with pytest.raises(ValueError, match="'gsm8k' is registered already"):
        register_task("gsm8k", countries)


def test_a_question_may_look_like_a_template() -> None:
    problem = dataclasses.replace(open_row("arithmetic").train.get(0, 0), question="{question} {0} %s \\1")
    assert open_row("arithmetic").prompt(problem) == "Question: {question} {0} %s \\1\nAnswer:"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"name": "gsm9k"},
            "grpo.tasks: name = 'gsm9k': unknown; did you mean gsm8k?; known are arithmetic, calculator, gsm8k, ",
        ),
        (
            {"rewards": {"corect": 1.0}},
            "rewards: 'corect' is unknown; did you mean correct?; known are correct, format",
        ),
        ({"rewards": {}}, "rewards: all weights are 0, so nothing is learnt"),
        ({"rewards": {"correct": 0.0}}, "rewards: all weights are 0, so nothing is learnt"),
        ({"prompt_template": "Question: {text}"}, "prompt_template = 'Question: {text}': no {question} in it"),
        ({"path": "x.jsonl"}, "path = 'x.jsonl' has no effect on arithmetic; leave it out"),
        ({"eval_path": "x.jsonl"}, "eval_path = 'x.jsonl' has no effect on arithmetic; leave it out"),
        ({"shuffle_options": False}, "shuffle_options = false has no effect on arithmetic; leave it out"),
        ({"options": {"size": 3}}, "options = {...} has no effect on arithmetic; leave it out"),
        ({"name": "gsm8k", "level": 2}, "level = 2 has no effect on gsm8k; leave it out"),
        ({"name": "medqa", "level": 2}, "level = 2 has no effect on medqa; leave it out"),
    ],
)
def test_wrong_config_rows_are_named(fields: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task._TASKS, "_registered", {})  # without what other tests registered
    built_in = {name: rewards.REWARDS[name] for name in ("correct", "format", "length")}
    monkeypatch.setattr(rewards.REWARDS, "_registered", built_in)
    fields = {"name": "arithmetic", **fields}
    assert problem_of(**fields).startswith(message)


def test_all_mistakes_of_a_row_are_named() -> None:
    wrong = {"prompt_template": "x", "rewards": {"corect": 1.0}, "holdout_fraction": 0.2}
    assert len(problems_of("arithmetic", **wrong)) == 2
    assert len(problems_of("arithmetic", prompt_template="x", level=99)) == 2


def test_defaults_that_are_written_out_are_no_mistake() -> None:
    """The resolved config of a run holds every value."""
    row = GrpoTask(name="arithmetic")
    assert len(open_task(GrpoTask(**row.model_dump()), 1).train) > 0


# Where answers end


def test_stop_tokens_of_tokenizer_and_tasks() -> None:
    plain, lines = open_row("arithmetic", level=1), open_row("arithmetic", level=1, stop=["\n"])
    assert stop_tokens(ByteTokenizer(), [plain]) == [256, 258], "of documents, and of turns"
    assert stop_tokens(ByteTokenizer(), [lines, lines]) == [256, 258, ord("\n")]
    with pytest.raises(ConfigError, match="stop differs between tasks"):
        stop_tokens(ByteTokenizer(), [plain, lines])
    with pytest.raises(ConfigError, match="stop = 'ab': 2 tokens"):
        stop_tokens(ByteTokenizer(), [open_row("arithmetic", level=1, stop=["ab"])])


# Environments


class Opens(Environment):
    """Opens with what is given, or as an error is raised."""

    def __init__(self, opening: Any) -> None:
        self.opening = opening

    def reset(self, problem: Problem) -> Any:
        if isinstance(self.opening, type):
            raise self.opening
        return self.opening


@pytest.mark.parametrize(
    ("opening", "said"),
    [
        (SystemExit, "SystemExit"),
        (GeneratorExit, "GeneratorExit"),
        ([{"role": "user", "content": "\ud800"}], "surrogates not allowed"),
        ([{"role": "user", "content": "a", "more": {1}}], "not JSON serializable"),
    ],
)
def test_a_reset_that_fails_is_a_mistake_and_not_the_end(opening: Any, said: str) -> None:
    game = dataclasses.replace(open_task(GrpoTask(name="guess_number", chat=True), 0), environment=Opens(opening))
    with pytest.raises(ConfigError, match=f"reset of its environment, on guess_number/.*{said}"):
        game.messages(game.evaluation.get(0, 0))


def test_a_template_is_written_around_the_question_of_a_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked_in(row: GrpoTask) -> str:
        game = open_task(row, 0)
        return game.messages(game.train.get(0, 0))[0]["content"]

    question = "Guess the number from 1 to 20 that I think of."
    row = GrpoTask(name="guess_number", chat=True, prompt_template="Play. {question} Think!")
    assert asked_in(row) == f"Play. {question} Think!"
    assert asked_in(row.model_copy(update={"prompt_template": None})) == question
    assert "Play." in open_task(row.model_copy(update={"chat": False}), 0).prompt(Problem("g", "g/5", question, "5"))
    monkeypatch.setattr(GuessNumber, "reset", Opens.reset)
    with pytest.raises(ConfigError, match="prompt_template has no effect: `reset` of its environment"):
        open_task(row, 0)
