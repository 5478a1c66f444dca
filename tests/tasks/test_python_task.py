"""The task `python`: its files, the program of a completion, and verdicts by tests in a sandbox."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.grpo import GrpoTask
from titan_pt.sandbox.programs import Limits, Sandbox
from titan_pt.tasks.python import program_of
from titan_pt.tasks.task import Problem, Task, open_task

ADD = {
    "question": "Write add(a, b).",
    "tests": ["assert add(1, 2) == 3"],
    "solution": "def add(a, b):\n    return a + b",
}
DOUBLE = {
    "question": "Double a number.",
    "tests": [{"input": "4\n", "output": "8\n"}, {"input": "0", "output": "0"}],
    "solution": "```python\nprint(2 * int(input()))\n```",
}
MBPP = {
    "task_id": 1,
    "text": "Write area(r).",
    "code": "def area(r):\r\n    return pi * r * r",
    "test_list": ["assert abs(area(1) - 3.14) < 0.01"],
    "test_setup_code": "from math import pi",
}
HUMAN_EVAL = {
    "task_id": "HumanEval/0",
    "prompt": 'def negate(x):\n    """The negative."""\n',
    "entry_point": "negate",
    "canonical_solution": "    return -x\n",
    "test": "def check(candidate):\n    assert candidate(2) == -2\n",
}
EQUALS_ALL = "class All:\n    __eq__ = lambda a, b: True\ndef negate(x): return All()"
ROWS: list[dict[str, Any]] = [ADD, DOUBLE, MBPP, HUMAN_EVAL]


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., Task]:
    """A task of these rows, evaluated on the same ones under other questions."""
    try:
        Sandbox(Limits())
    except ConfigError as error:
        pytest.skip(f"programs cannot be sandboxed here: {error.problems[0]}")

    def opened(*rows: dict[str, Any], **settings: Any) -> Task:
        (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / "eval.jsonl").write_text(json.dumps({**ADD, "question": "Add two numbers by add(a, b)."}) + "\n")
        paths = {"path": str(tmp_path / "train.jsonl"), "eval_path": str(tmp_path / "eval.jsonl")}
        return open_task(GrpoTask(name="python", **paths, **settings), 0)

    return opened


def test_rows_of_every_form_are_proved_and_graded(opened: Callable[..., Task]) -> None:
    task = opened(*ROWS)
    problems = [task.train.get(number, 0) for number in range(len(task.train))]
    assert [problem.question for problem in problems] == [
        "Write add(a, b).",
        "Double a number.",
        "Write area(r).",
        'def negate(x):\n    """The negative."""',
    ]
    for problem, other in zip(problems, [*problems[1:], problems[0]], strict=True):
        assert all(task.grade(problem.solution, problem, rule) for rule in ("strict", "official", "lenient"))
        assert not task.grade(other.solution, problem, "lenient")
    assert task.grade("    return 0 - x", problems[3], "strict")  # the continuation of the function's head
    assert not task.grade("    return x", problems[3], "strict")
    assert not task.grade(EQUALS_ALL, problems[3], "lenient")
    assert not task.grade("print(8)", problems[1], "strict")  # right for the first input alone


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"solution": "def add(a, b):\n    return a - b"}, "train.jsonl:1: its own solution is wrong: add.1, 2. is -1"),
        ({"tests": []}, "train.jsonl, line 1: 'tests' is .*; want a list of texts such as"),
        ({"tests": ["assert add(1"]}, "train.jsonl, line 1: 'assert add.1' is no Python"),
        ({"tests": [{"input": "1"}]}, "want a list of texts such as"),
        ({"question": ""}, "train.jsonl, line 1: 'question' is ''; want text"),
    ],
)
def test_a_bad_row_is_refused_or_left_out(change: dict[str, Any], said: str, opened: Callable[..., Task]) -> None:
    with pytest.raises(ConfigError, match=said):
        opened({**ADD, **change}, DOUBLE)
    assert len(opened({**ADD, **change}, DOUBLE, on_bad_row="skip").train) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"memory": 64}, "options.memory: unknown; did you mean memory_mb?; known are cpu_seconds, memory_mb"),
        ({"memory_mb": 1}, "options.memory_mb = 1: want a whole number from 64 on, such as 256"),
        ({"cpu_seconds": True}, "options.cpu_seconds = true: want a whole number from 1 on, such as 4"),
    ],
)
def test_options_are_limits_of_the_sandbox(options: dict[str, Any], said: str, opened: Callable[..., Task]) -> None:
    with pytest.raises(ConfigError) as refused:
        opened(ADD, options=options)
    assert said in str(refused.value)


def test_a_step_of_programs_is_graded_side_by_side_and_within_its_limits(opened: Callable[..., Task]) -> None:
    task = opened(*ROWS, options={"cpu_seconds": 1, "wall_seconds": 2})
    problem = task.train.get(0, 0)
    assert task.prepare is not None
    texts = [problem.solution, "def add(a, b):\n    while True: pass", "import time\ntime.sleep(99)", "nothing", ""]
    task.prepare([(problem, text) for text in texts], lambda: False)
    start = time.process_time()
    verdicts = [task.grade(text, problem, rule) for text in texts for rule in ("strict", "official", "lenient")]
    assert verdicts == [True] * 3 + [False] * 12
    assert time.process_time() - start < 0.1  # they were kept


def test_a_request_to_stop_leaves_programs_alone(opened: Callable[..., Task]) -> None:
    task = opened(ADD)
    problem: Problem = task.train.get(0, 0)
    assert task.prepare is not None
    start = time.monotonic()
    task.prepare([(problem, f"import time\ntime.sleep({n})") for n in range(60, 80)], lambda: True)
    assert time.monotonic() - start < 60.0


def test_without_a_sandbox_the_task_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"'python'.: runs programs .* apt-get install bubblewrap"):
        open_task(GrpoTask(name="python", path="train.jsonl"), 0)


@pytest.mark.parametrize(
    ("completion", "strict", "lenient"),
    [
        ("x = 1", "x = 1", "x = 1"),
        ("It is:\n```python\nx = 1\n```\nDone.", "x = 1\n", "x = 1\n"),
        ("```\nx = 1\n```", "x = 1\n", "x = 1\n"),
        ("```python\nx = 1\n```\nor\n```py\nx = 2\n```", "", "x = 2\n"),
        ("```python\nx = 1", "", "\nx = 1"),
    ],
)
def test_the_program_of_a_completion(completion: str, strict: str, lenient: str) -> None:
    assert program_of(completion, "strict") == program_of(completion, "official") == strict
    assert program_of(completion, "lenient") == lenient
