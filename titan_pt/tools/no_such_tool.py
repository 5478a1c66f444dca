"""What is said where `python -m titan_pt.tools.NAME` names no tool. Imported there alone."""

import re
from pathlib import Path

from titan_pt.config.errors import nearest, one_of


def no_such_tool(name: str) -> str:
    """The tools that there are, with the nearest."""
    known = [
        file.stem for file in Path(__file__).parent.glob("*.py") if re.search(r"(?m)^def main\(", file.read_text())
    ]
    return (
        f"python -m titan_pt.tools.{name}: there is no such tool{nearest(name, known)}; the tools are {one_of(known)}"
    )
