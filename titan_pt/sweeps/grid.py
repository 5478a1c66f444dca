"""The points of a sweep: every combination of the grid's values, as resolved configs with folders of their own."""

import hashlib
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

from titan_pt.config.errors import ConfigError, shown
from titan_pt.config.manager import resolve
from titan_pt.config.resolve.printing import literal
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.run.outgoing import redact

SEED = "debug.seed"
_FOLDER = "job.dump_folder"
_LONGEST_NAME, _LONGEST_VALUE = 200, 40


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    values: dict[str, Any]
    """Value by key, of the keys that the sweep varies, in the order of their names."""
    folder: Path
    config: JobConfig
    flags: list[str] = field(repr=False)
    """What makes this run out of the sweep's TOML file."""

    @property
    def name(self) -> str:
        return self.folder.name


def read_grid(texts: Sequence[str]) -> dict[str, list[str]]:
    """Values by key of flags such as `optimizer.lr=1e-3,1e-2`.

    Raises:
        ConfigError: one has another form, or names a key twice or one that no sweep can vary.
    """
    grid: dict[str, list[str]] = {}
    for text in texts:
        key, equals, listed = text.partition("=")
        key = key.strip().removeprefix("--")
        values, opened = _split(listed)
        if not (equals and key and all(values)):
            raise ConfigError(f"--grid = {shown(text)}: must be KEY=VALUE,VALUE such as optimizer.lr=1e-3,1e-2")
        if opened:
            raise ConfigError(f"--grid {key} = {shown(listed)}: {opened} holds the commas behind it and is not closed")
        if key in grid:
            raise ConfigError(f"--grid {key}: given twice; give all of its values in one, with commas between them")
        if key in (_FOLDER, "job.config_file"):
            raise ConfigError(f"--grid {key}: each point has a run folder of its own and the sweep one TOML file")
        grid[key] = values
    return grid


def _split(text: str) -> tuple[list[str], str]:
    """The text split at its commas, those inside of brackets and quotes excepted; and what of these is left open."""
    parts, depth, quote = [""], 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        else:
            depth += (char in "[{") - (char in "]}")
        if char == "," and depth <= 0 and not quote:
            parts.append("")
        else:
            parts[-1] += char
    opened = quote or ("a bracket" if depth > 0 else "")
    return [part.strip() for part in parts], opened if "," in parts[-1] else ""


def points_of(
    arguments: list[str], grid: dict[str, list[str]], num_seeds: int | None, output: str | None
) -> list[Point]:
    """Every point of the grid, resolved; with `num_seeds` each of them for as many seeds, from debug.seed on.

    Args:
        arguments: of a single run: the TOML file and the flags that all points share.
        output: folder of the points' run folders; by default the name of the single run's and "_sweep".

    Raises:
        ConfigError: what is wrong with any of the points, each mistake once.
    """
    problems: list[str] = []
    points: dict[Path, Point] = {}
    for values in itertools.product(*grid.values()):
        flags = [f"--{key}={value}" for key, value in zip(grid, values, strict=True)]
        for seed in _seeds([*arguments, *flags], num_seeds, problems):
            try:
                point = _point(arguments, [*flags, *seed], [*grid, *([SEED] if seed else [])], output)
            except ConfigError as error:
                problems += error.problems
                continue
            if point.folder in points:
                problems.append(f"--grid: {point.name} comes twice; two of its values are the same")
            points[point.folder] = point
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
    return list(points.values())


def _seeds(arguments: list[str], count: int | None, problems: list[str]) -> Iterator[list[str]]:
    """The flag of each seed; one without flags where none were asked for, and none where the config is wrong."""
    if count is None:
        yield []
        return
    try:
        first = resolve(arguments).config.debug.seed
    except ConfigError as error:
        problems += error.problems
        return
    for seed in range(first, first + count):
        yield [f"--{SEED}={seed}"]


def _point(arguments: list[str], flags: list[str], keys: list[str], output: str | None) -> Point:
    config = resolve([*arguments, *flags]).config
    values = {key: reduce(getattr, key.split("."), config) for key in sorted(keys)}
    tables: Any = config.model_dump(exclude_none=True)
    name = ",".join(f"{key}={_safe(reduce(dict.get, key.split('.'), tables))}" for key in values)
    if len(name) > _LONGEST_NAME:
        name = f"{name[: _LONGEST_NAME - 9]}-{_digest(name)}"
    folder = Path(output or f"{config.job.dump_folder.rstrip('/')}_sweep") / name
    job = config.job.model_copy(update={"dump_folder": str(folder)})
    return Point(values, folder, config.model_copy(update={"job": job}), [*flags, f"--{_FOLDER}={folder}"])


def _safe(value: Any) -> str:
    """A value as a part of a folder's name: as it is where that is short and plain."""
    text = redact(str(value) if value is None or isinstance(value, str) else literal(value))
    plain = re.sub(r"[^A-Za-z0-9.+_-]+", "-", text)
    return text if plain == text and len(text) <= _LONGEST_VALUE else f"{plain[: _LONGEST_VALUE - 9]}-{_digest(text)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
