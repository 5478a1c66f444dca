"""Runs Python programs by bubblewrap: no network, no files, no second process, and limits on all that is left."""

import ast
import functools
import json
import marshal
import os
import secrets
import selectors
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from titan_pt.config.errors import ConfigError
from titan_pt.sandbox import seccomp

# Parts of the standard library whose shared libraries are shown to a program, where this Python has them.
_EXTENSIONS = "bz2 ctypes decimal hashlib lzma sqlite3 unicodedata uuid zlib"
_LIST_LIBRARIES = """
import sys
for name in sys.argv[1].split():
    try: __import__(name)
    except ImportError: pass
print(*{line.split(None, 5)[-1].strip() for line in open("/proc/self/maps") if ".so" in line}, sep="\\n")
"""
_INSTALL = "install it, such as by apt-get install bubblewrap, or take another task"


@dataclass(frozen=True)
class Limits:
    """What one program may use."""

    cpu_seconds: int = 4
    """Processor time: it hardly depends on what else the machine does, so neither does the verdict."""
    wall_seconds: float = 10.0
    """Time by the clock, for a program that waits."""
    memory_mb: int = 256
    """Address space."""
    output_bytes: int = 1 << 20
    """Standard output."""

    def of_process(self) -> dict[str, int]:
        """The limits that the program's process sets on itself (setrlimit(2))."""
        return {
            "RLIMIT_CPU": self.cpu_seconds,
            "RLIMIT_AS": self.memory_mb << 20,
            "RLIMIT_FSIZE": 0,
            "RLIMIT_NOFILE": 16,
            "RLIMIT_CORE": 0,
        }


@dataclass(frozen=True)
class Outcome:
    """How a program ended."""

    output: str
    """Its standard output."""
    ended: Literal["exit", "time", "output"]
    """By itself or by a limit that its process set; by the clock; by writing too much."""
    code: int
    """Its exit status: 0 where nothing failed, 128 + the signal that ended it."""


class Sandbox:
    """Runs programs.

    Raises:
        ConfigError: there is no bubblewrap, or it cannot make a sandbox here.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._bwrap = shutil.which("bwrap")
        self._filter = seccomp.program()
        if not self._bwrap:
            raise ConfigError(f"runs programs that the model writes in a sandbox, and there is no bwrap; {_INSTALL}")
        if not self._filter:
            raise ConfigError(f"the sandbox knows no system calls of {os.uname().machine}; use x86_64 or aarch64")
        self._command = [self._bwrap, *_flags(), "--seccomp"]
        reason = self._reason_against()
        if reason:
            raise ConfigError(
                f"{self._bwrap} is here but cannot make a sandbox: {reason}; allow user namespaces (sysctl "
                "user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns; in a container its seccomp "
                "profile), or take another task"
            )

    def _reason_against(self) -> str:
        """Why no program can be run; empty where one was."""
        with self._started("print(6 * 7)", None, "", "", subprocess.PIPE) as process:
            try:
                output, error = process.communicate(timeout=30.0)
            except subprocess.TimeoutExpired:
                return "it took longer than 30 s"
            finally:
                process.kill()
        lines = error.decode(errors="replace").strip().splitlines()
        return "" if output == b"\n42\n" else lines[-1] if lines else f"it ended with exit code {process.returncode}"

    def run(self, program: str, stdin: str) -> Outcome:
        """Run a program that reads its standard input and writes to its standard output.

        Raises:
            RuntimeError: no sandbox could be made for it.
        """
        return self._run(program, None, secrets.token_hex(8), stdin)

    def test(self, program: str, tests: Sequence["ProgramTest"]) -> list[str]:
        """Run a program and then tests beside it: what is wrong with each, empty where it is right.

        The program does not see the value that is expected: what is written is compared out here.

        Raises:
            RuntimeError: no sandbox could be made for it.
        """
        mark = secrets.token_hex(8)
        outcome = self._run(program, [(test.is_value, test.code) for test in tests], mark, "")
        said = [line[len(mark) + 1 :] for line in outcome.output.split("\n") if line.startswith(mark)]
        values = [_parsed(line) for line in said]
        if values[:1] != ["ready"]:
            return [_error(values[0]) if values else f"the program ended ({outcome.ended} {outcome.code})"] * len(tests)
        missing = [{"error": f"no verdict: the program ended ({outcome.ended} {outcome.code})"}] * len(tests)
        return [test.wrong(value) for test, value in zip(tests, [*values[1:], *missing], strict=False)]

    def _run(self, program: str, tests: list[tuple[bool, str]] | None, mark: str, stdin: str) -> Outcome:
        limits, ended = self._limits, "exit"
        until = time.monotonic() + limits.wall_seconds
        output = bytearray()
        with self._started(program, tests, mark, stdin, subprocess.DEVNULL) as process:
            try:
                for piece in _pieces(process, until):
                    output += piece
                    if len(output) > limits.output_bytes:
                        ended = "output"
                        break
                else:
                    process.wait(max(0.0, until - time.monotonic()))
            except (TimeoutError, subprocess.TimeoutExpired):
                ended = "time"
            finally:
                process.kill()  # and with it, by --die-with-parent, all in the sandbox
        first = f"{mark}\n".encode()
        if ended == "exit" and not output.startswith(first):
            reason = self._reason_against() or f"it ended with exit code {process.returncode}, and can be made now"
            raise RuntimeError(f"the sandbox was not made, so that the program was not run: {reason}")
        text = bytes(output[len(first) : limits.output_bytes]).decode(errors="replace")
        return Outcome(text, ended, process.returncode)  # type: ignore[arg-type]

    def _started(
        self, program: str, tests: list[tuple[bool, str]] | None, mark: str, stdin: str, stderr: int
    ) -> "subprocess.Popen[bytes]":
        job = marshal.dumps((self._limits.of_process(), program, tests, mark))
        files = [
            _in_memory(self._filter or b""),
            _in_memory(b"%d\n%s%s" % (len(job), job, stdin.encode(errors="replace"))),
        ]
        try:
            return subprocess.Popen(
                [*self._command, str(files[0]), *_python()],
                env={"LD_LIBRARY_PATH": "/python/libs", "PYTHONHASHSEED": "0"},
                stdin=files[1],
                stdout=subprocess.PIPE,
                stderr=stderr,
                pass_fds=files[:1],
                start_new_session=True,
            )
        finally:
            for file in files:
                os.close(file)


@dataclass(frozen=True)
class ProgramTest:
    """One test: an expression with the value it must have, or statements that must not raise."""

    code: str
    is_value: bool
    expected: Any = None
    identical: bool = False
    """Whether the value must be `expected` itself, as by `is`."""

    @classmethod
    def parse(cls, text: str) -> "ProgramTest":
        """The test of a text such as "assert add(1, 2) == 3"; a ValueError for what is no Python."""
        try:
            body = ast.parse(text).body
        except SyntaxError as error:
            raise ValueError(f"{text[:80]!r} is no Python: {error.msg}") from None
        if not body:
            raise ValueError("a test is empty")
        check = body[0].test if len(body) == 1 and isinstance(body[0], ast.Assert) else None
        if isinstance(check, ast.Compare) and len(check.ops) == 1 and isinstance(check.ops[0], ast.Eq | ast.Is):
            try:
                expected = ast.literal_eval(check.comparators[0])
                json.dumps(_frozen(expected))
                return cls(ast.unparse(check.left), True, expected, isinstance(check.ops[0], ast.Is))
            except (ValueError, TypeError):
                pass  # computed from the program itself, or a type that has no plain form
        return cls(text, False, True)

    def wrong(self, value: Any) -> str:
        """What is wrong with a value that the sandbox gave; empty where nothing is."""
        if isinstance(value, dict):
            return _error(value)
        try:
            given = decoded(value)
            right = given is self.expected if self.identical else bool(given == self.expected)
        except (ValueError, TypeError, LookupError, RecursionError):
            return "the value cannot be read"
        return "" if right else f"{self.code} is {str(given)[:80]}"


def decoded(value: Any) -> Any:
    """The value that the sandbox wrote as JSON."""
    if not isinstance(value, list):
        return value
    kind, *items = value
    if kind == "dict":
        return {decoded(key): decoded(item) for key, item in items}
    makers = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
    return makers[kind](map(decoded, items))


def _frozen(value: Any) -> Any:
    """The value where the sandbox can write it; a TypeError where it cannot."""
    if isinstance(value, bytes | complex) or value is ...:
        raise TypeError
    if isinstance(value, dict):
        return [*map(_frozen, value), *map(_frozen, value.values())]
    return [_frozen(item) for item in value] if isinstance(value, list | tuple | set | frozenset) else value


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return {"error": "the value cannot be read"}


def _error(value: Any) -> str:
    return str(value.get("error", "")) or "no verdict" if isinstance(value, dict) else "no verdict"


def _pieces(process: "subprocess.Popen[bytes]", until: float) -> Iterator[bytes]:
    """What a process writes, up to its end; a TimeoutError where it is not there by then."""
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(max(0.0, until - time.monotonic())):
                raise TimeoutError
            piece = os.read(process.stdout.fileno(), 1 << 16)
            if not piece:
                return
            yield piece


def _in_memory(content: bytes) -> int:
    """A file that only its number names, at its beginning."""
    file = os.memfd_create("job")
    with open(file, "wb", closefd=False) as stream:
        stream.write(content)
    os.lseek(file, 0, os.SEEK_SET)
    return file


@functools.cache
def _python() -> tuple[str, ...]:
    return f"/python/bin/{_executable().name}", "-s", "-S", "-B", "-X", "utf8", "-c", _inside()


def _inside() -> str:
    return Path(__file__).with_name("inside.py").read_text(encoding="utf-8")


def _executable() -> Path:
    return Path(sys.executable).resolve()


@functools.cache
def _flags() -> tuple[str, ...]:
    """What is in the sandbox: this Python, its standard library and the shared libraries that these load."""
    executable, library = _executable(), Path(sysconfig.get_path("stdlib")).resolve()
    inside = f"/python/lib/{library.name}"
    binds = [(str(executable), f"/python/bin/{executable.name}"), (str(library), inside)]
    listing = [str(executable), "-I", "-S", "-c", _LIST_LIBRARIES, _EXTENSIONS]
    for name in subprocess.run(listing, capture_output=True, text=True, check=True).stdout.split("\n"):
        found = Path(name)
        if not name or found.is_relative_to(library):
            continue
        # The loader stands where the executable looks for it; the others under each of their names.
        folders = [Path("/lib64"), Path("/lib")] if found.name.startswith("ld-linux") else [found.parent]
        places = {
            each for folder in folders if folder.is_dir() for each in folder.glob(found.name.split(".so")[0] + "*")
        }
        for place in sorted(places):
            if place.resolve() == found.resolve():
                target = str(place) if found.name.startswith("ld-linux") else f"/python/libs/{place.name}"
                binds.append((name, target))
    flags = ["--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    for source, target in binds:
        flags += ["--ro-bind", source, target]
    for folder in ("site-packages", "dist-packages"):
        if (library / folder).is_dir():
            flags += ["--tmpfs", f"{inside}/{folder}", "--remount-ro", f"{inside}/{folder}"]
    return *flags, "--remount-ro", "/", "--chdir", "/"
