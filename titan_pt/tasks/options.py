"""`options` and `level` of a row of [[grpo.tasks]]."""

from collections.abc import Mapping
from typing import Any

from titan_pt.config.errors import ConfigError, nearest, one_of, shown
from titan_pt.config.schema.grpo import GrpoTask


def whole_numbers(options: Mapping[str, Any], defaults: Mapping[str, int], least: Mapping[str, int]) -> dict[str, int]:
    """The options of a task whose options are all whole numbers: those given, and else the defaults.

    Raises:
        ConfigError: names every mistake.
    """
    problems = []
    for name, value in options.items():
        if name not in defaults:
            problems.append(f"options.{name}: unknown{nearest(name, defaults)}; known are {one_of(defaults)}")
        elif isinstance(value, bool) or not isinstance(value, int) or value < least.get(name, value):
            bound = f" from {least[name]} on" if name in least else ""
            problems.append(f"options.{name} = {shown(value)}: want a whole number{bound}, such as {defaults[name]}")
    if problems:
        raise ConfigError(*problems)
    return {**defaults, **options}


def level_of(row: GrpoTask, levels: Mapping[int, str]) -> int:
    """The level of a row, 1 where it has none.

    Args:
        levels: description of each by its number.

    Raises:
        ConfigError: no such level.
    """
    level = 1 if row.level is None else row.level
    if level not in levels:
        allowed = "; ".join(f"{number}: {description}" for number, description in levels.items())
        raise ConfigError(f"level = {level}: unknown; allowed are {allowed}")
    return level
