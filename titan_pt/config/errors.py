"""Messages about users' mistakes: every problem found, the allowed values, the nearest known name."""

from collections.abc import Iterable
from typing import Any


class ConfigError(ValueError):
    """One or more mistakes in a config, a flag, a path or the environment. Programs end with exit code 2 on it.

    Args:
        problems: one line each; names the field, the value, where it was set, what is allowed and a fix.
    """

    def __init__(self, *problems: str) -> None:
        assert problems, "a ConfigError names at least one problem"
        self.problems = list(problems)
        super().__init__("\n".join(problems))

    def report(self) -> str:
        """The text for stderr."""
        if len(self.problems) == 1:
            return f"config error: {self.problems[0]}"
        lines = "\n".join(f"  {i}. {problem}" for i, problem in enumerate(self.problems, 1))
        return f"config error: {len(self.problems)} problems\n{lines}"


def nearest(name: str, known: Iterable[str]) -> str:
    """The text "; did you mean ...?" for the closest known name, or an empty string."""
    from titan_pt.config.names import closest

    match = closest(name, known)
    return f"; did you mean {match}?" if match else ""


def one_of(names: Iterable[str]) -> str:
    """A readable list of the allowed names."""
    return ", ".join(sorted(names)) or "none"


def shown(value: Any) -> str:
    """A value in a message: short, and never what may be a secret, such as the inside of a misplaced table."""
    from titan_pt.config.names import shortened

    return shortened(value)
