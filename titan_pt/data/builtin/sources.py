"""Documents that every machine has: the Python library's own files, and generated problems."""

import os
import random
import sysconfig
from pathlib import Path

from titan_pt.config.errors import ConfigError, one_of, shown
from titan_pt.config.schema.job_config import Source
from titan_pt.data.builtin.arithmetic import LEVELS, ArithmeticProblem, make_problem, num_problems, problem
from titan_pt.data.builtin.conversations import HeldOutSums, MadeConversations
from titan_pt.data.builtin.questions import HOLDOUT_FRACTION, is_held_out
from titan_pt.data.builtin.sorting import LEVELS as SORTING_LEVELS
from titan_pt.data.builtin.sorting import SortedLists
from titan_pt.data.builtin.tool_sums import LEVELS as TOOL_LEVELS
from titan_pt.data.builtin.tool_sums import ToolSums
from titan_pt.data.builtin.worked_problems import WorkedProblems
from titan_pt.data.permutation import digest
from titan_pt.data.sources.identity import content_hash
from titan_pt.data.sources.registry import SourceItems

_LEVELS_BY_NAME = {f"level-{level}": level for level in LEVELS}


def open_python_stdlib(source: Source, _seed: int) -> SourceItems:
    """The documents of the name python_stdlib."""
    if source.subset is not None:
        raise ConfigError(f"data source {source.name!r}: subset = {shown(source.subset)}: it has none; leave it out")
    return PythonStdlib()


def open_arithmetic(source: Source, seed: int) -> SourceItems:
    """The problems of the name arithmetic: endless ones of all kinds, or those of the level in `subset`."""
    as_rows = source.formatter is not None  # of GSM8K
    if source.subset is None:
        return Arithmetic(seed, rows=as_rows)
    if source.subset not in _LEVELS_BY_NAME:
        allowed = "; ".join(f'"{name}" ({LEVELS[level]})' for name, level in _LEVELS_BY_NAME.items())
        raise ConfigError(
            f"data source {source.name!r}: subset = {shown(source.subset)}: unknown; allowed are {allowed}; "
            "leave it out for endless problems of all kinds"
        )
    return ArithmeticLevel(_LEVELS_BY_NAME[source.subset], rows=as_rows)


def open_arithmetic_plain(source: Source, _seed: int) -> SourceItems:
    """The problems of the name arithmetic_plain: of the level in `subset`, without the marker of the answer."""
    if source.subset not in _LEVELS_BY_NAME:
        raise ConfigError(
            f"data source {source.name!r}: subset = {shown(source.subset)}: want one of {one_of(_LEVELS_BY_NAME)}"
        )
    return ArithmeticLevel(_LEVELS_BY_NAME[source.subset], plain=True)


def open_conversations(source: Source, seed: int) -> SourceItems:
    """The conversations of the name conversations, or with a `subset` the sums that none of them asks for."""
    if source.subset not in (None, "held-out"):
        raise ConfigError(
            f'data source {source.name!r}: subset = {shown(source.subset)}: unknown; allowed is "held-out" ('
            "sums that no other conversation asks for); leave it out for conversations to train on"
        )
    _check_is_for_records(source)
    return MadeConversations(seed) if source.subset is None else HeldOutSums()


def _check_is_for_records(source: Source) -> None:
    if source.formatter is None:
        raise ConfigError(
            f'data source {source.name!r}: holds conversations, not texts; train on them with job.trainer = "sft"'
        )


def open_tool_sums(source: Source, _seed: int) -> SourceItems:
    """The conversations of the name tool_sums, about the sums of the level in `subset`."""
    level = _level(source, TOOL_LEVELS)
    _check_is_for_records(source)
    return ToolSums(level)


def open_sorting(source: Source, _seed: int) -> SourceItems:
    """The lists of the name sorting, of the level in `subset`: texts, or with a formatter records."""
    return SortedLists(_level(source, SORTING_LEVELS), rows=source.formatter is not None)


def _level(source: Source, descriptions: dict[int, str]) -> int:
    levels = {f"level-{level}": level for level in descriptions}
    if source.subset not in levels:
        allowed = "; ".join(f'"{name}" ({descriptions[level]})' for name, level in levels.items())
        raise ConfigError(f"data source {source.name!r}: subset = {shown(source.subset)}: want one of {allowed}")
    return levels[source.subset]


def open_worked_problems(source: Source, seed: int) -> SourceItems:
    """The problems of the name worked_problems: texts, or with a formatter rows of GSM8K."""
    if source.subset is not None:
        raise ConfigError(f"data source {source.name!r}: subset = {shown(source.subset)}: it has none; leave it out")
    return WorkedProblems(seed, rows=source.formatter is not None)


class PythonStdlib:
    """The Python standard library's source files, without its tests: text that every machine has."""

    def __init__(self) -> None:
        root = Path(sysconfig.get_paths()["stdlib"])
        skipped = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib-dynload"}
        files = []
        for folder, folders, names in os.walk(root):
            folders[:] = set(folders) - skipped  # not walked: installed packages are many thousand files
            files += [Path(folder, name) for name in names if name.endswith(".py")]
        # A distribution may leave links to nowhere.
        self._files = [path for path in sorted(files) if path.is_file() and path.stat().st_size > 0]
        self.fingerprint = digest([f"{path.relative_to(root)}:{path.stat().st_size}" for path in self._files])
        self.contents = [("the Python library", digest([content_hash(str(path)) for path in self._files]))]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> str:
        return self._files[index].read_text(encoding="utf-8", errors="replace")


class Arithmetic:
    """Generated questions whose answers end in `#### <number>`: sums, differences and products of small numbers.

    Args:
        rows: give rows of GSM8K instead of texts, without the problems that the task "arithmetic" only evaluates on.
    """

    generated = True
    size = 1_000_000

    def __init__(self, seed: int, *, rows: bool = False) -> None:
        self._seed, self._rows = seed, rows
        self.fingerprint = f"arithmetic-1-{seed}"

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> str | dict[str, str]:
        if not 0 <= index < self.size:
            raise IndexError(index)
        rng = random.Random(f"{self._seed}/{index}")
        found = _draw(rng)
        while self._rows and _is_evaluated(found):
            found = _draw(rng)
        return _row(found) if self._rows else found.document


class ArithmeticLevel:
    """All problems of one level of difficulty, each once.

    Args:
        plain: without the marker `#### <number>`.
        rows: give rows of GSM8K; the next problem stands in for one that is only evaluated on.
    """

    generated = True

    def __init__(self, level: int, *, plain: bool = False, rows: bool = False) -> None:
        self._level, self._plain, self._rows = level, plain, rows
        self.fingerprint = f"arithmetic-1-level-{level}{'-plain' if plain else ''}"

    def __len__(self) -> int:
        return num_problems(self._level)

    def __getitem__(self, index: int) -> str | dict[str, str]:
        made = problem(self._level, index)
        while self._rows and _is_evaluated(made):
            index = (index + 1) % len(self)
            made = problem(self._level, index)
        if self._rows:
            return _row(made)
        return made.plain_document if self._plain else made.document


def _draw(rng: random.Random) -> ArithmeticProblem:
    a, b = (rng.randrange(10 ** rng.randint(1, 3)) for _ in range(2))
    operation = rng.choice("+-*")
    if operation == "*":
        a, b = a % 100, b % 10
    return make_problem(a, operation, b)


def _is_evaluated(made: ArithmeticProblem) -> bool:
    return is_held_out(made.question, HOLDOUT_FRACTION)


def _row(made: ArithmeticProblem) -> dict[str, str]:
    return {"question": made.question, "answer": made.solution}
