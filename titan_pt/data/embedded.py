"""Documents that need no file and no network."""

import hashlib
import json
import random
import sysconfig
from pathlib import Path

from titan_pt.config.errors import ConfigError, shown
from titan_pt.config.job_config import Source
from titan_pt.data.arithmetic import LEVELS, make_problem, num_problems, problem


class PythonStdlib:
    """The Python standard library's source files, without its tests: text that every machine has."""

    def __init__(self) -> None:
        root = Path(sysconfig.get_paths()["stdlib"])
        skipped = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib-dynload"}
        files = sorted(path for path in root.rglob("*.py") if not skipped.intersection(path.relative_to(root).parts))
        # A distribution may leave links to nowhere.
        self._files = [path for path in files if path.is_file() and path.stat().st_size > 0]
        listing = [f"{path.relative_to(root)}:{path.stat().st_size}" for path in self._files]
        self.fingerprint = hashlib.sha256(json.dumps(listing).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> str:
        return self._files[index].read_text(encoding="utf-8", errors="replace")


class Arithmetic:
    """Generated questions whose answers end in `#### <number>`: sums, differences and products of small numbers."""

    size = 1_000_000

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.fingerprint = f"arithmetic-1-{seed}"

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < self.size:
            raise IndexError(index)
        rng = random.Random(f"{self._seed}/{index}")
        a, b = (rng.randrange(10 ** rng.randint(1, 3)) for _ in range(2))
        operation = rng.choice("+-*")
        if operation == "*":
            a, b = a % 100, b % 10
        return make_problem(a, operation, b).document


class ArithmeticLevel:
    """All problems of one level of difficulty, each once."""

    def __init__(self, level: int) -> None:
        self._level = level
        self.fingerprint = f"arithmetic-1-level-{level}"

    def __len__(self) -> int:
        return num_problems(self._level)

    def __getitem__(self, index: int) -> str:
        return problem(self._level, index).document


def open_python_stdlib(source: Source, _seed: int) -> PythonStdlib:
    """A SourceFactory."""
    if source.subset is not None:
        raise ConfigError(f"data source {source.name!r}: subset = {shown(source.subset)}: it has none; leave it out")
    return PythonStdlib()


def open_arithmetic(source: Source, seed: int) -> Arithmetic | ArithmeticLevel:
    """A SourceFactory: endless problems of all kinds, or with subset = "level-N" those of one level."""
    if source.subset is None:
        return Arithmetic(seed)
    levels = {f"level-{level}": level for level in LEVELS}
    if source.subset not in levels:
        allowed = "; ".join(f'"{name}" ({LEVELS[level]})' for name, level in levels.items())
        raise ConfigError(
            f"data source {source.name!r}: subset = {shown(source.subset)}: unknown; allowed are {allowed}; "
            "leave it out for endless problems of all kinds"
        )
    return ArithmeticLevel(levels[source.subset])
