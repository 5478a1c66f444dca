"""`titan-pt cp quickstart mine.toml`: a copy of an experiment to change, which writes to a run folder of its own.

Beside the names of `titan-pt ls` and TOML files of your own it copies the folders k8s and scripts.
"""

import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

from titan_pt.config.errors import ConfigError
from titan_pt.config.shipped import FOLDERS, find, folder, known
from titan_pt.run.files import MOST_BYTES, read_text, write_atomic
from titan_pt.run.tool_files import flag_path
from titan_pt.tools.command import ToolParser, run_tool

_DUMP_FOLDER = re.compile(r"""^dump_folder *= *("[^"]*"|'[^']*')""", re.MULTILINE)
_JOB = re.compile(r"^\[job\].*$", re.MULTILINE)
_EXTENDS = re.compile(r"^extends *= *(\[[^\]]*\]|.*)", re.MULTILINE)


def main(argv: list[str] | None = None) -> int:
    """Copy as the arguments say; returns the exit code."""
    return run_tool(lambda: _copy(argv))


def _copy(argv: list[str] | None) -> None:
    parser = ToolParser(prog="python -m titan_pt.tools.cp", description=__doc__)
    parser.add_argument("source", metavar="NAME", help="a shipped experiment, a TOML file, k8s or scripts")
    parser.add_argument("target", metavar="TARGET", nargs="?", help="the file, or a folder for it (default: this one)")
    parser.add_argument("--force", action="store_true", help="write over a file that is there")
    arguments = parser.parse_args(argv)
    if arguments.source in FOLDERS:
        source = folder() / arguments.source
    else:
        given = flag_path("NAME", arguments.source)
        source = given if given.is_file() else find(arguments.source, extended=True) or given
    if not source.exists():
        raise ConfigError(f"NAME = {arguments.source!r}: no such file or experiment{known(source)}")
    target = flag_path("TARGET", arguments.target) if arguments.target is not None else Path()
    target = target / source.name if target.is_dir() else target
    if target.exists() and (source.is_dir() or not arguments.force):
        force = "" if source.is_dir() else ", or write over it with --force"
        raise ConfigError(f"TARGET = {str(target)!r}: exists; name another{force}")
    if not target.parent.is_dir():
        raise ConfigError(f"TARGET = {str(target)!r}: there is no folder {target.parent}; make it first")
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("secrets.yaml", "__pycache__"))
        print(target)
        return
    write_atomic(target, copied(read_text(source, MOST_BYTES), source, target))
    print(f"{target}: to train it: titan-pt train {shlex.quote(str(target))}")


def copied(text: str, source: Path, target: Path) -> str:
    """The text of a TOML file where it is another one: its own run folder, and what it extends found from there.

    A shipped file is found by its name from any folder; another one is named relative to the copy.
    """
    shipped = folder() / "train_configs"

    def named(quoted: re.Match[str]) -> str:
        name, parent = quoted[2], (source.parent / quoted[2]).resolve()
        if parent.is_relative_to(shipped):
            name = parent.relative_to(shipped).as_posix()
        elif parent.exists() and not name.startswith(("/", "~", "$")):
            name = os.path.relpath(parent, target.parent.resolve())
        return f"{quoted[1]}{name}{quoted[1]}"

    own = f"dump_folder = {json.dumps(f'outputs/{target.stem}', ensure_ascii=False)}"
    if _DUMP_FOLDER.search(text):
        text = _DUMP_FOLDER.sub(lambda _: own, text, count=1)
    elif _EXTENDS.search(text):  # it has the one of a file that it extends
        text = _JOB.sub(lambda table: f"{table[0]}\n{own}", text) if _JOB.search(text) else f"{text}\n[job]\n{own}\n"
    return _EXTENDS.sub(lambda line: re.sub(r"""(["'])(.*?)\1""", named, line[0]), text, count=1)


if __name__ == "__main__":
    sys.exit(main())
