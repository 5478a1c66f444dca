"""The documentation's commands: which there are, and a shell that runs those that are marked so.

A comment on the line before a block of code says what becomes of it:

    <!-- run -->              its commands are run by the tests, block after block of a page in one folder
    <!-- shown: needs X -->   its commands need what the tests do not have; their flags, keys and files are checked
    <!-- file: NAME -->       the block is written to NAME in the folder where the page's commands run

`python tests/documented.py` counts the commands of both kinds.
"""

import functools
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
AFTER_QUICKSTART = ("README.md", "docs/tutorial.md", "docs/evaluation.md", "docs/report.md", "docs/chat.md")
"""Pages whose commands go on from the quickstart's run folders: tests/integration/test_quickstart.py runs them."""
SHELLS = ("bash", "sh", "console", "shell")
_MARK = re.compile(r"<!-- (run|shown|file)(?:: (.+?))? -->$")
_FENCE = re.compile(r"( *)(`{3,})(\S*)")


@dataclass(frozen=True)
class Block:
    """A fenced block of code of a page."""

    page: str
    line: int
    mark: str
    """"run", "shown", "file", or empty."""
    argument: str
    """Reason of a shown block, name of a file."""
    language: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"

    def commands(self) -> list[str]:
        """The commands of a block for a shell, each on one line, without comments."""
        joined = re.sub(r"\\\n\s*", "", self.text)
        return [line.strip() for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def pages() -> list[Path]:
    """README and the pages of docs/ that a person wrote for users."""
    outside = [ROOT / name for name in ("README.md", "CONTRIBUTING.md")]
    docs = sorted((ROOT / "docs").rglob("*.md"))
    examples = sorted((ROOT / "examples").rglob("*.md"))
    return [page for page in [*outside, *docs, *examples] if page.is_file()]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    found: list[Block] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        fence = _FENCE.match(lines[number])
        if not fence:
            number += 1
            continue
        start, indent = number, len(fence[1])
        end = next(i for i in range(start + 1, len(lines)) if lines[i].strip() == fence[2])
        mark = _MARK.match(lines[start - 1].strip()) if start else None
        text = "".join(f"{line[indent:]}\n" for line in lines[start + 1 : end])
        kind, argument = (mark[1], mark[2] or "") if mark else ("", "")
        found.append(Block(str(page.relative_to(ROOT)), start + 1, kind, argument, fence[3], text))
        number = end + 1
    return found


def shell_blocks() -> list[Block]:
    """The blocks of all pages that hold commands."""
    return [block for page in pages() for block in blocks(page) if block.language in SHELLS]


def count() -> dict[str, dict[str, int]]:
    """How many commands each page has, by mark."""
    table: dict[str, dict[str, int]] = {}
    for block in shell_blocks():
        row = table.setdefault(block.page, {"run": 0, "shown": 0})
        row[block.mark] = row.get(block.mark, 0) + len(block.commands())
    return table


def run_pages(names: Sequence[str], folder: Path, outputs: Path | None = None) -> None:
    """Run the commands of each page in a folder of its own, which may begin with a copy of earlier runs."""
    with fast_commands(folder / "bin") as fast:
        for name in names:
            own = folder / "pages" / name
            own.mkdir(parents=True)
            if outputs:
                shutil.copytree(outputs, own / "outputs", symlinks=True)
            run_page(ROOT / name, own, fast)


def run_page(page: Path, folder: Path, bin_folder: Path) -> None:
    """Write the page's files and run its commands in `folder`, in order; the repository's files are there, too."""
    for entry in ROOT.iterdir():
        if (
            not entry.name.startswith(".")
            and entry.name not in ("outputs", "site")
            and not (folder / entry.name).exists()
        ):
            (folder / entry.name).symlink_to(entry)
    env = {**os.environ, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    for block in blocks(page):
        if block.mark == "file":
            path = folder / block.argument
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        elif block.mark == "run":
            command = ["bash", "-euo", "pipefail", "-c", block.text]
            done = subprocess.run(
                command, cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False
            )
            assert done.returncode == 0, f"{block.where}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"


@contextmanager
def fast_commands(folder: Path) -> Iterator[Path]:
    """A folder for PATH whose `titan-pt` and `python -m titan_pt...` are forks of a process that has imported torch.

    Starting one of them takes 4 seconds of a core otherwise, nearly all of it imports.
    """
    folder.mkdir()
    address = folder / "server"
    for name in ("titan-pt", "python", "python3"):
        path = folder / name
        path.write_text(
            _CLIENT.format(python=sys.executable, tests=str(ROOT / "tests"), address=str(address), name=name)
        )
        path.chmod(0o755)
    server = subprocess.Popen(
        [sys.executable, __file__, "serve", str(address)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert server.stdout is not None
    server.stdout.readline()  # it listens
    try:
        yield folder
    finally:
        server.terminate()
        server.wait()


_CLIENT = """#!{python} -IS
import os, sys
name, arguments = "{name}", sys.argv[1:]
if name != "titan-pt" and (arguments[:1] != ["-m"] or not arguments[1].startswith("titan_pt")):
    os.execv("{python}", ["{python}", *arguments])
sys.path.insert(0, "{tests}")
import json, socket
with socket.socket(socket.AF_UNIX) as server:
    server.connect("{address}")
    request = json.dumps([name, arguments, os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(request).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(request)
    answer = server.recv(1)
sys.exit(answer[0] if answer else 1)
"""


def serve(address: str) -> None:
    """Fork for each connection, run its command, and answer with the exit code."""
    import forked

    forked.preload()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        print("listening", flush=True)
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _answer(connection)
            connection.close()


def _answer(connection: socket.socket) -> None:
    import forked

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, descriptors, _, _ = socket.recv_fds(connection, 8, 3)
    request = b""
    while len(request) < int.from_bytes(size, "big"):
        request += connection.recv(1 << 16)
    child = os.fork()
    if child == 0:
        name, arguments, folder, env = json.loads(request)
        if name == "titan-pt" and arguments[:1] == ["train"] and env.get("NGPU", "1") == "1":  # without the launcher
            arguments = ["-m", "titan_pt.train", *arguments[1:]]
        elif name == "titan-pt":
            arguments = ["-m", "titan_pt.cli", *arguments]
        forked.become(descriptors, arguments, folder=folder, env=env)
    _, status = os.waitpid(child, 0)
    connection.sendall(bytes([os.waitstatus_to_exitcode(status) % 256]))
    os._exit(0)


@functools.cache
def tool_help(tool: str) -> str:
    """What `--help` of a command says, from this process."""
    import contextlib
    import importlib
    import io

    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        importlib.import_module(tool).main(["--help"])
    return text.getvalue()


def words(command: str) -> list[str]:
    """The words of a command; what a shell would do with them does not matter here."""
    try:
        return shlex.split(command, comments=True)
    except ValueError:  # a quote that goes on in the next line
        return command.split()


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(sys.argv[2])
    table = count()
    for name, row in table.items():
        print(f"{name:34} " + "  ".join(f"{mark or 'unmarked'} {number:3}" for mark, number in row.items()))
    total = {mark: sum(row.get(mark, 0) for row in table.values()) for mark in ("run", "shown", "")}
    print(f"{'all pages':34} run {total['run']:3}  shown {total['shown']:3}  unmarked {total['']:3}")
