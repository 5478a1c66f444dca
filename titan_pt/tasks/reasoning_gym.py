"""`reasoning_gym:<name>`: generated problems of the package reasoning-gym with its own scorers (arXiv 2505.24760)."""

import dataclasses
import importlib
import inspect
import json
import logging
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np

from titan_pt.config.errors import ConfigError, nearest, shown
from titan_pt.config.schema.grpo import GrpoTask
from titan_pt.tasks.grading import find_text
from titan_pt.tasks.problems import Entry, hold_out, normalised, plain_problems
from titan_pt.tasks.task import Problem, Task, refuse_unused

logger = logging.getLogger("titan_pt")

_NUM_PROBLEMS = 1000
_EVALUATORS = {"eval", "exec", "parse_expr", "sympify"}
"""Names of functions that evaluate text as code; sympy's parser calls `eval`."""


def build(row: GrpoTask, seed: int) -> Task:
    """The task of a reasoning_gym set: `create_dataset(name, seed=seed, size=1000, **row.options)`, each question once.

    A completion is right where the set's scorer gives 1.0 to its answer: what follows the one line that begins with
    "Answer:", up to the end, as many answers are grids (`grading.find_text`).

    Raises:
        ConfigError: an unknown set or option, a missing package, or a scorer that evaluates answers as code.
    """
    refuse_unused(row, "holdout_fraction", "options")
    name = row.name.partition(":")[2]
    options = {"seed": seed, "size": _NUM_PROBLEMS, **row.options}
    dataset = _open_dataset(name, options)
    items = {f"{row.name}/{number}": item for number, item in enumerate(_generate(name, options))}
    train, evaluation = hold_out(_entries(items), row.holdout_fraction)

    def grade(completion: str, problem: Problem, rule: str) -> bool:
        answer = find_text(completion, rule)
        return answer is not None and bool(dataset.score_answer(answer, items[problem.id]) >= 1.0)

    return Task(
        name=row.name,
        train=plain_problems(train, row.name),
        evaluation=plain_problems(evaluation, row.name),
        grade=grade,
        template='Question: {question}\nEnd with a line "Answer: ...".\n',
        find_answer=find_text,
    )


def _open_dataset(name: str, options: Mapping[str, Any]) -> Any:
    try:
        known = importlib.import_module("reasoning_gym.factory").DATASETS
    except ImportError as error:
        raise ConfigError(f"{error}; pip install 'titan-pt[reasoning]' brings the package reasoning_gym") from None
    if name not in known:
        raise ConfigError(
            f"name: reasoning_gym has no {shown(name)}{nearest(name, known)}; it has {len(known)}, such as "
            'reasoning_gym:chain_sum; python -c "import reasoning_gym.factory as f; print(*f.DATASETS)" lists them'
        )
    kind, settings = known[name]
    if evaluates_text(kind):
        raise ConfigError(f"name: the scorer of {shown(name)} evaluates text as code; choose another")
    size = options["size"]
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ConfigError(f"options.size = {shown(size)}: want a number of problems from 1 on")
    for option in options:
        fields = [field.name for field in dataclasses.fields(settings)]
        if option not in fields:
            raise ConfigError(f"options.{option}: unknown{nearest(option, fields)}; {name} has {', '.join(fields)}")
    try:
        return importlib.import_module("reasoning_gym").create_dataset(name, **options)
    except Exception as error:  # each set checks its options differently
        raise ConfigError(f"options: {name} refuses them: {type(error).__name__}: {error}") from error


def evaluates_text(kind: type) -> bool:
    """Whether the `score_answer` of a class, or a function of its package that it calls, evaluates text as code."""
    seen: set[FunctionType] = set()
    pending = [function for function in [getattr(kind, "score_answer", None)] if inspect.isfunction(function)]
    while pending:
        function = pending.pop()
        if function in seen:
            continue
        seen.add(function)
        for name in _names(function.__code__):
            known = _package_functions(name, kind, function)
            if name in _EVALUATORS and not known:
                return True
            pending += known
    return False


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _package_functions(name: str, kind: type, function: FunctionType) -> list[FunctionType]:
    """Functions of the same package that a name in a function's code may refer to."""
    package = function.__module__.partition(".")[0]
    named = [function.__globals__.get(part) for part in _names(function.__code__)]
    holders = [*kind.__mro__, *(holder for holder in named if isinstance(holder, type | ModuleType))]
    found = [function.__globals__.get(name), *(inspect.getattr_static(holder, name, None) for holder in holders)]
    plain = (getattr(candidate, "__func__", candidate) for candidate in found)
    return [one for one in plain if inspect.isfunction(one) and one.__module__.partition(".")[0] == package]


def _entries(items: Mapping[str, Mapping[str, Any]]) -> list[Entry]:
    entries: dict[str, Entry] = {}
    for entry_id, item in items.items():
        # Where there are many right answers there may be none to show.
        entry = Entry(entry_id, item["question"].strip(), str(item["answer"] or ""))
        entries.setdefault(normalised(entry.question), entry)
    return list(entries.values())


def _generate(name: str, options: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The items of a set, generated in a new process and the same in every run.

    Some sets iterate over Python sets of texts, whose order differs between processes, or draw from the global random
    numbers: ranks and restarts would get different problems. Only a new process can get a fixed seed of the hash.
    """
    logger.info(f"Generating {options['size']:,} problems of reasoning_gym:{name}")
    environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", f"from {__name__} import _write_items; _write_items()"]
    done = subprocess.run([*command, name, json.dumps(options)], env=environment, capture_output=True)
    if done.returncode < 0:
        raise RuntimeError(f"generating reasoning_gym:{name} was ended by signal {-done.returncode}")
    if done.returncode > 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
        raise ConfigError(f"reasoning_gym:{name} cannot be generated: {lines[-1]}")
    items: Sequence[Mapping[str, Any]] = pickle.loads(done.stdout)
    return items


def _write_items() -> None:
    """Generate the items of a set and pickle them to the standard output; runs in the new process."""
    output, sys.stdout = sys.stdout.buffer, sys.stderr  # some sets print
    name, options = sys.argv[1], json.loads(sys.argv[2])
    random.seed(0)
    np.random.seed(0)
    dataset = importlib.import_module("reasoning_gym").create_dataset(name, **options)
    pickle.dump([dataset[number] for number in range(options["size"])], output)
