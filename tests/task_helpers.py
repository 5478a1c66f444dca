"""Problem files and tasks opened on them, for the tests of the tasks."""

import json
from pathlib import Path
from typing import Any

import pytest

from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.grpo import GrpoTask
from titan_pt.tasks.problems import normalised
from titan_pt.tasks.task import Problem, Problems, Task, open_task

SUMS = [{"question": f"How much is {i} and {i}? ", "answer": f"It is <<{i}+{i}>>.\n#### {2 * i}"} for i in range(40)]
CASES = [
    {
        "question": f"A patient of {i} years coughs. Which?",
        "answer": f"drug {i % 4} of {i}",
        "options": {letter: f"drug {number} of {i}" for number, letter in enumerate("ABCD")},
        "answer_idx": "ABCD"[i % 4],
        "meta_info": "step1",
    }
    for i in range(40)
]


def write_rows(path: Path, rows: Any) -> str:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def open_row(name: str, seed: int = 1, **fields: Any) -> Task:
    return open_task(GrpoTask(name=name, **fields), seed)


def problems_of(name: str, **fields: Any) -> list[str]:
    """The messages of a ConfigError, without the name of the task that each begins with."""
    with pytest.raises(ConfigError) as caught:
        open_row(name, **fields)
    start = f"grpo.tasks ({name!r}): "
    assert all(problem.startswith(start) or "unknown" in problem for problem in caught.value.problems)
    return [problem.removeprefix(start) for problem in caught.value.problems]


def problem_of(name: str, **fields: Any) -> str:
    (problem,) = problems_of(name, **fields)
    return problem


def asked(problems: Problems, visit: int = 0) -> list[Problem]:
    return [problems.get(index, visit) for index in range(len(problems))]


def questions(problems: Problems) -> set[str]:
    """Normalised questions; those of multiple choice without the options."""
    return {normalised(problem.question.partition("\nA. ")[0]) for problem in asked(problems)}
