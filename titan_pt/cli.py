"""`titan-pt TOOL ...`: every command of the package, from one table.

A tool is a module that `python -m MODULE` runs too; it is imported when it is asked for.
"""

import difflib
import importlib.metadata
import platform
import runpy
import shlex
import sys
from typing import NamedTuple


class Tool(NamedTuple):
    """A row of the table: `titan-pt NAME ...` is `python -m MODULE FIRST... ...`."""

    name: str
    module: str
    help: str
    """What it does, in a line of `titan-pt --help`."""
    first: tuple[str, ...] = ()
    """Arguments before the user's."""
    takes: str = ""
    """ "experiment" where it takes one, with the flags of its keys."""


TOOLS = (
    Tool(
        "train",
        "titan_pt.launch",
        "train an experiment on this machine: its TOML file, or a shipped name",
        first=("--standalone", "-m", "titan_pt.train"),
        takes="experiment",
    ),
    Tool("generate", "titan_pt.tools.generate", "text from any model"),
    Tool("chat", "titan_pt.tools.chat", "talk to a model"),
    Tool("evaluate", "titan_pt.tools.evaluate", "accuracy on tasks, and the loss of a text"),
    Tool("harness", "titan_pt.tools.harness", "tasks of lm-evaluation-harness on any model"),
    Tool("export", "titan_pt.tools.export", "a run's model as a Hugging Face folder"),
    Tool("average", "titan_pt.tools.average", "the mean of a run's last checkpoints as one model"),
    Tool("prepare", "titan_pt.tools.prepare", "tokenize a source of an experiment once", takes="experiment"),
    Tool(
        "train_tokenizer",
        "titan_pt.tools.train_tokenizer",
        "a vocabulary from the texts of an experiment",
        takes="experiment",
    ),
    Tool("data", "titan_pt.tools.data", "the first documents that an experiment reads", takes="experiment"),
    Tool("plan", "titan_pt.tools.plan", "memory, time and cost before a GPU is rented", takes="experiment"),
    Tool(
        "explain",
        "titan_pt.config.manager",
        "every value of an experiment, and where it comes from",
        first=("--explain",),
        takes="experiment",
    ),
    Tool("ls", "titan_pt.tools.ls", "the experiments that come with the package"),
    Tool("cp", "titan_pt.tools.cp", "a copy of one to change"),
    Tool("port", "titan_pt.tools.port", "TorchTitan's TOML file as one of titan_pt"),
    Tool("doctor", "titan_pt.tools.doctor", "what this machine has and lacks, in one screen"),
    Tool("report", "titan_pt.tools.report", "one run or several as a page of curves, evaluations and rollouts"),
    Tool("compare", "titan_pt.tools.compare", "the keys in which runs differ, and what came of it"),
    Tool("scaling", "titan_pt.tools.scaling", "what a larger run would reach, by several smaller ones"),
    Tool("sweep", "titan_pt.tools.sweep", "an experiment with every combination of values", takes="experiment"),
    Tool("goodput", "titan_pt.tools.goodput", "where the time of a run went"),
    Tool("blackbox", "titan_pt.tools.blackbox", "what the bad steps of a run read and computed"),
    Tool("completion", "titan_pt.tools.completion", "a script that makes bash or zsh complete all this"),
    Tool(
        "await_start", "titan_pt.tools.await_start", "wait for the weights that a run starts from", takes="experiment"
    ),
)
"""The one table: what `--help` lists, what is run, and what the shell completes."""


def main(argv: list[str] | None = None) -> int:
    """Run the tool that the arguments name; returns its exit code."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help", "help") and not rest:
        print(help_text())
        return 0
    if name in ("-V", "--version"):
        print(version_line())
        return 0
    if name == "help":
        name, rest = rest[0], ["--help"]
    tool = next((tool for tool in TOOLS if tool.name == name), None)
    if tool is None:
        print(unknown(name), file=sys.stderr)
        return 2
    return run(tool, rest)


def run(tool: Tool, arguments: list[str]) -> int:
    """Run a tool as `python -m` does, modules of the working folder included; returns its exit code."""
    if not getattr(sys.flags, "safe_path", False):  # PYTHONSAFEPATH, from Python 3.11 on
        sys.path.insert(0, "")
    sys.argv[:] = [f"titan-pt {tool.name}", *tool.first, *arguments]
    try:
        runpy.run_module(tool.module, run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            raise
        return int(end.code or 0)
    return 0


def help_text() -> str:
    """The tools, a line each."""
    width = max(len(tool.name) for tool in TOOLS) + 2
    return "\n".join(
        [
            "usage: titan-pt TOOL [ARGUMENTS]",
            "",
            *(f"  {tool.name:{width}}{tool.help}" for tool in TOOLS),
            "",
            "titan-pt TOOL --help lists the flags of a tool. To begin: titan-pt train quickstart",
        ]
    )


def version_line() -> str:
    """The versions that a question about this installation needs."""
    from titan_pt.version import made_by

    try:
        torch = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        torch = "not installed"
    return f"{made_by()}; torch {torch}, Python {platform.python_version()}"


def unknown(name: str) -> str:
    """What is wrong with a first argument that names no tool."""
    from titan_pt.config.shipped import experiments

    names = [tool.name for tool in TOOLS]
    match = difflib.get_close_matches(name.lower().replace("-", "_"), names, n=1)
    meant = f"; did you mean {match[0]}?" if match else ""
    if name.endswith(".toml") or name in experiments():
        meant = f"; to train it: titan-pt train {shlex.quote(name)}"
    listed = f"the tools are {', '.join(names)}; titan-pt --help says what each does"
    return f"titan-pt: {name!r}: unknown tool{meant}\n{listed}"


if __name__ == "__main__":
    sys.exit(main())
