"""`python`: programs as answers, right where they pass the tests of their problem in a sandbox (`titan_pt/sandbox`)."""

import ast
import functools
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from titan_pt.config.errors import ConfigError, shown
from titan_pt.config.schema.grpo import GrpoTask
from titan_pt.sandbox.programs import Limits, ProgramTest, Sandbox
from titan_pt.tasks.options import whole_numbers
from titan_pt.tasks.problems import Entry, HubSet, field_of, plain_problems, read_problems, text_field
from titan_pt.tasks.task import Task, refuse_unused

_HUB = HubSet("google-research-datasets/mbpp", "full", train="train", evaluation="validation")
_TEMPLATE = "Question: {question}\nAnswer with one block of Python.\n"
_BLOCK = re.compile(r"^```(?:python|py)?[ \t]*\n(.*?)^```[ \t]*$", re.DOTALL | re.MULTILINE | re.IGNORECASE)
_FENCE = re.compile(r"^```(?:python|py)?[ \t]*$", re.MULTILINE | re.IGNORECASE)
_LEAST = {"cpu_seconds": 1, "wall_seconds": 1, "memory_mb": 64}
"""Settings of the sandbox that a row may change, and the least value of each."""
_OPTIONS = {name: int(getattr(Limits, name)) for name in _LEAST}
"""The same with the sandbox's own values."""


def build(row: GrpoTask, _seed: int) -> Task:
    """The task of problems whose answers are Python programs.

    Files hold `question` and `tests`, a list of texts such as "assert add(1, 2) == 3" or of objects {"input": ...,
    "output": ...} of a program that reads its standard input and writes to its standard output; and may hold a
    worked `solution`. The fields of MBPP and of HumanEval are read too.

    Raises:
        ConfigError: no sandbox can be made here; a bad file; a worked solution that fails its tests.
    """
    refuse_unused(row, "path", "eval_path", "holdout_fraction", "options")
    grader = _Grader(Sandbox(Limits(**whole_numbers(row.options, _OPTIONS, _LEAST))))
    train, evaluation = read_problems(row, _HUB, _parse)
    worked = [entry for entry in [*train, *evaluation] if entry.solution]
    grader.run_together([(entry.gold, entry.solution) for entry in worked], lambda: False)
    for entry in worked if row.on_bad_row == "error" else ():
        if failure := grader.failure(entry.gold, program_of(entry.solution, "strict")):
            raise ConfigError(f'{entry.id}: its own solution is wrong: {failure}; on_bad_row = "skip" leaves it out')
    return Task(
        name=row.name,
        train=plain_problems(train, row.name),
        evaluation=plain_problems(evaluation, row.name),
        grade=lambda completion, problem, rule: grader.is_right(problem.gold, completion, rule),
        prepare=lambda answers, stopped: grader.prepare([(problem.gold, text) for problem, text in answers], stopped),
        template=_TEMPLATE,
        find_answer=lambda completion: program_of(completion, "strict") if _FENCE.search(completion) else None,
    )


def program_of(completion: str, rule: str) -> str:
    """The program of a completion: its one block between ``` lines, or all of it where there is no such line.

    Leniently its last block, which need not be closed. Empty where there is no program.
    """
    blocks = _BLOCK.findall(completion)
    fences = list(_FENCE.finditer(completion))
    if not fences:
        return completion.strip("\n")
    if rule != "lenient":
        return blocks[0] if len(blocks) == 1 and completion.count("\n```") + completion.startswith("```") == 2 else ""
    return blocks[-1] if blocks else completion[fences[-1].end() :]


@dataclass(frozen=True)
class _Tests:
    """The tests of one problem: beside the program, or by its input and output."""

    beside: tuple[ProgramTest, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    before: str = ""
    """Code before the program, such as imports."""
    begins: str = ""
    """Beginning of the program, which a completion may leave out: HumanEval's head of the function."""
    function: str = ""
    """Name of the function that `begins` begins."""

    def failure(self, program: str, sandbox: Sandbox) -> str:
        """What is wrong with a program; empty where it passes."""
        if self.function and not re.search(rf"^def {re.escape(self.function)}\b", program, re.MULTILINE):
            program = self.begins + program
        program = self.before + program
        if self.beside:
            return next(filter(None, sandbox.test(program, self.beside)), "")
        for given, wanted in self.pairs:
            outcome = sandbox.run(program, given)
            if outcome.ended != "exit" or outcome.code:
                return f"for the input {given[:40]!r} it ended ({outcome.ended} {outcome.code})"
            if _lines(outcome.output) != _lines(wanted):
                return f"for the input {given[:40]!r} it wrote {outcome.output[:40]!r}, not {wanted[:40]!r}"
        return ""


class _Grader:
    """Runs programs and keeps their verdicts, of one step's completions at a time."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._failures: dict[tuple[str, str], str] = {}
        self._threads = max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))

    def is_right(self, gold: str, completion: str, rule: str) -> bool:
        """Whether the program of a completion passes the tests."""
        return not self.failure(gold, program_of(completion, rule))

    def failure(self, gold: str, program: str) -> str:
        """What is wrong with a program; empty where it passes."""
        if not program.strip():
            return "there is no program"
        key = gold, program
        if key not in self._failures:
            self._failures[key] = _tests_of(gold).failure(program, self._sandbox)
        return self._failures[key]

    def prepare(self, answers: Sequence[tuple[str, str]], stopped: Callable[[], bool]) -> None:
        """Run the programs of completions of (tests, completion); what was kept before is dropped."""
        self._failures.clear()
        self.run_together(answers, stopped)

    def run_together(self, answers: Sequence[tuple[str, str]], stopped: Callable[[], bool]) -> None:
        """Run the programs of (tests, completion) side by side, up to a request to stop."""
        wanted = {(gold, program_of(text, rule)): None for gold, text in answers for rule in ("strict", "lenient")}
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="sandbox")
        try:
            left = {pool.submit(self.failure, *each) for each in wanted}
            while left and not stopped():
                done, left = wait(left, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in done:  # where no sandbox could be made, the grading of this one tries again and says so
                    if not isinstance(future.exception(), RuntimeError):
                        future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _parse(row: Mapping[str, Any], entry_id: str) -> Entry:
    """The problem of a row; its tests are the gold answer, as JSON."""
    if "entry_point" in row:  # HumanEval
        question, name = field_of(row, "prompt"), text_field(row, "entry_point")
        tests = {"beside": _checks(text_field(row, "test"), name), "begins": question, "function": name}
        solution = question + row["canonical_solution"] if row.get("canonical_solution") else ""
        question = question.strip()
    else:
        question = text_field(row, next((name for name in ("question", "prompt", "text") if name in row), "question"))
        given = field_of(row, "tests" if "tests" in row or "test_list" not in row else "test_list")
        tests = _tests_given(given)
        setup = [*row.get("test_imports", ()), row.get("test_setup_code", "")]
        tests["before"] = "".join(f"{line}\n" for line in setup if line)
        solution = row.get("solution") or row.get("code") or ""
    if not isinstance(solution, str):
        raise ValueError(f"'solution' is {shown(solution)}; want text")
    for text in tests.get("beside", ()):
        ProgramTest.parse(text)
    if solution and not _FENCE.search(solution):
        solution = f"```python\n{solution.strip(chr(10))}\n```"
    return Entry(entry_id, question, json.dumps(tests), solution=solution)


def _checks(text: str, name: str) -> list[str]:
    """The tests of HumanEval's `check(candidate)`: each of its asserts, where it holds nothing else, or all as one."""
    whole = [f"{text}\ncheck({name})"]
    try:
        body = ast.parse(text).body
    except SyntaxError:
        return whole
    check = body[-1] if body else None
    if not isinstance(check, ast.FunctionDef) or (check.name, ast.unparse(check.args)) != ("check", "candidate"):
        return whole
    if not all(isinstance(each, ast.Assert) for each in check.body):
        return whole
    before = [*map(ast.unparse, body[:-1]), f"candidate = {name}"]
    return ["\n".join(before), *map(ast.unparse, check.body)]


def _tests_given(given: Any) -> dict[str, Any]:
    if isinstance(given, list) and given:
        if all(isinstance(each, str) for each in given):
            return {"beside": given}
        if all(isinstance(each, dict) and _is_pair(each) for each in given):
            return {"pairs": [(each["input"], each["output"]) for each in given]}
    raise ValueError(
        f"'tests' is {shown(given)}; want a list of texts such as 'assert add(1, 2) == 3', or of objects with an "
        "'input' and an 'output'"
    )


def _is_pair(each: Mapping[str, Any]) -> bool:
    return set(each) == {"input", "output"} and all(isinstance(text, str) for text in each.values())


@functools.lru_cache(4096)
def _tests_of(gold: str) -> _Tests:
    tests = json.loads(gold)
    beside = tuple(map(ProgramTest.parse, tests.pop("beside", ())))
    return _Tests(beside, tuple(map(tuple, tests.pop("pairs", ()))), **tests)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]
