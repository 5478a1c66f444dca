"""What a program of the sandbox cannot do, and what is said of one that tries or of a machine without a sandbox."""

import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from titan_pt.config.errors import ConfigError
from titan_pt.sandbox.programs import Limits, ProgramTest, Sandbox


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    try:
        return Sandbox(Limits(cpu_seconds=1, wall_seconds=30.0, memory_mb=128, output_bytes=1 << 16))
    except ConfigError as error:
        pytest.skip(f"programs cannot be sandboxed here: {error.problems[0]}")


# Each program prints what it should not have been able to do; nothing where it fails.
HARMFUL = {
    "reads a file of the host": "print(open('/etc/passwd').read())",
    "lists the host": "import os\nprint(set(os.listdir('/')) - {'python', 'lib64', 'lib'} or '', end='')",
    "sees processes": "import os\nprint(os.listdir('/proc'))",
    "has a home": "import os\nprint(os.listdir('/root'), os.listdir('/home'))",
    "has packages": "import sys\nsys.path.append('/python/lib/python3.11/site-packages')\nimport numpy\nprint(1)",
    "writes a file": """
import os
for folder in ("/", "/tmp", "/dev/shm", "/python", "/python/libs", "/python/bin", "."):
    try:
        with open(os.path.join(folder, "new"), "wb") as file:
            file.write(bytes(1 << 20))
        print(folder)
    except OSError:
        pass
""",
    "fills memory that no limit counts": "import os\nprint(os.memfd_create('x'))",
    "makes a big shared memory": "import ctypes\nprint(ctypes.CDLL(None).shmget(0, 1 << 30, 0o1600) + 1 or '', end='')",
    "starts a process": "import os\nprint(os.fork())",
    "starts a shell": "import subprocess\nprint(subprocess.run(['/python/bin/python3', '-c', '1']))",
    "starts a thread": "import threading\nthread = threading.Thread(target=print, args=(1,))\nthread.start()",
    "makes namespaces": "import ctypes\nprint(ctypes.CDLL(None).unshare(0x10000000) + 1 or '', end='')",
    "raises its limits": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))\nprint(1)",
    "fills the memory": "blocks = []\nfor _ in range(1000):\n    blocks.append(bytes(10 << 20))\nprint(1)",
}


@pytest.mark.parametrize("what", HARMFUL)
def test_a_program_cannot(what: str, sandbox: Sandbox) -> None:
    outcome = sandbox.run(HARMFUL[what], "")
    assert (outcome.ended, outcome.output.strip()) == ("exit", ""), outcome


def test_a_program_sees_no_secret_of_the_environment(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "sesame")
    outcome = sandbox.run("import os\nprint(sorted(os.environ))", "")
    assert eval(outcome.output) == ["LD_LIBRARY_PATH", "PWD", "PYTHONHASHSEED"]


def test_a_program_reaches_no_server_of_this_machine(sandbox: Sandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.0)
        port = server.getsockname()[1]
        outcome = sandbox.run(f"import socket\nprint(socket.create_connection(('127.0.0.1', {port}), 1))", "")
        assert (outcome.output, outcome.code) == ("", 1)
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.mark.parametrize(
    ("program", "ended", "code"),
    [
        pytest.param("while True:\n    pass", "exit", 128 + 9, id="computes without end"),
        pytest.param("while True:\n    print('x' * 99_999)", "output", -9, id="prints without end"),
        pytest.param("import os\nos.kill(1, 9)\nos.kill(os.getppid(), 9)", "exit", 0, id="kills others"),
        pytest.param("raise SystemExit(3)", "exit", 3, id="exits"),
    ],
)
def test_a_program_ends_by_its_limits(program: str, ended: str, code: int, sandbox: Sandbox) -> None:
    before = children()
    outcome = sandbox.run(program, "")
    assert (outcome.ended, outcome.code) == (ended, code)
    assert len(outcome.output) <= 1 << 16
    assert children() == before  # nothing of it is left


@pytest.mark.parametrize("program", ["", "import os\nos.close(1)\n"], ids=["waits", "waits behind a closed output"])
def test_a_program_ends_by_the_clock(program: str, sandbox: Sandbox) -> None:
    before = children()
    outcome = Sandbox(Limits(wall_seconds=0.5)).run(f"{program}import time\ntime.sleep(60)", "")
    assert (outcome.ended, outcome.code) == ("time", -9)
    assert children() == before


def children() -> int:
    return sum(
        1
        for stat in Path("/proc").glob("[0-9]*/stat")
        if (text := read(stat)) and "(bwrap)" in text and text.rpartition(")")[2].split()[1] == str(os.getpid())
    )


def read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def test_programs_read_and_write(sandbox: Sandbox) -> None:
    outcome = sandbox.run("import sys\nprint(input()[::-1])\nprint(len(sys.stdin.read()))", "abc\nü\n\n")
    assert (outcome.output, outcome.ended, outcome.code) == ("cba\n3\n", "exit", 0)


def test_programs_have_the_standard_library_and_one_seed(sandbox: Sandbox) -> None:
    program = "import hashlib, decimal, ctypes, asyncio, random\nprint(random.random(), hash('a'))"
    with ThreadPoolExecutor(2) as pool:
        outputs = list(pool.map(lambda _: sandbox.run(program, "").output, range(2)))
    assert outputs[0] == outputs[1] != ""


def wrong(sandbox: Sandbox, program: str, *tests: str) -> list[str]:
    return sandbox.test(program, list(map(ProgramTest.parse, tests)))


TESTS = (
    "assert f(1) == [1, (2, 'x'), {3: {4}}]",
    "assert f(1)[0] is True",
    "assert abs(f(1)[0] - 1) < 0.1",
    "x = f(1)\nassert x[1] == (2, 'x'), 'why'",
)


def test_a_right_program_passes_its_tests(sandbox: Sandbox) -> None:
    assert wrong(sandbox, "print('noise')\ndef f(x): return [True, (2, 'x'), {3: {4}}]", *TESTS) == [""] * 4


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (
            "def f(x): return [True, [2, 'x'], {3: {4}}]",
            ["f(1) is [True, [2, 'x'], {3: {4}}]", "", "", "AssertionError: why"],
        ),
        ("def f(x): return 2", ["f(1) is 2", *["TypeError: 'int' object is not subscriptable"] * 3]),
        ("def f(x) return 2", ["SyntaxError: expected '(' (program.py, line 1)"] * 4),
        ("import sys\nsys.exit(0)", ["SystemExit: 0"] * 4),
        ("import os\nos._exit(0)", ["the program ended (exit 0)"] * 4),
        ("import os\ndef f(x): os._exit(0)", ["no verdict: the program ended (exit 0)"] * 4),
        ("print('\\n'.join(['true'] * 9))", ["NameError: name 'f' is not defined"] * 4),
    ],
)
def test_a_wrong_program_says_why(program: str, said: list[str], sandbox: Sandbox) -> None:
    given = wrong(sandbox, program, *TESTS)
    assert given == said or ("SyntaxError" in said[0] and all("SyntaxError" in each for each in given))


def test_an_object_that_equals_everything_passes_no_test_of_a_value(sandbox: Sandbox) -> None:
    program = "class All(list):\n    __eq__ = lambda a, b: True\n    __hash__ = None\ndef f(x): return All()"
    assert wrong(sandbox, program, TESTS[0])[0]
    assert wrong(sandbox, "class All:\n    __eq__ = lambda a, b: True\ndef f(x): return All()", TESTS[0])[0]


def test_what_a_program_replaces_decides_nothing(sandbox: Sandbox) -> None:
    program = (
        "import builtins, json, __main__\nbuiltins.exec = builtins.eval = lambda *_: None\n"
        "json.dumps = __main__._plain = lambda *_: 'true'\ndef f(x): return [2]"
    )
    assert all(wrong(sandbox, program, *TESTS))


def test_a_nested_value_is_no_fault_of_the_grader(sandbox: Sandbox) -> None:
    assert "RecursionError" in wrong(sandbox, "def f(x):\n    x = []\n    x.append(x)\n    return x", TESTS[0])[0]


def test_a_test_that_is_no_python_is_refused() -> None:
    with pytest.raises(ValueError, match="is no Python"):
        ProgramTest.parse("assert f(1")


def test_without_bubblewrap_the_sandbox_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="there is no bwrap; install it, such as by apt-get install bubblewrap"):
        Sandbox(Limits())


def test_a_bubblewrap_that_may_make_no_sandbox_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ConfigError, match=r"cannot make a sandbox: bwrap: No permissions .*; allow user namespaces"):
        Sandbox(Limits())


def test_a_sandbox_that_fails_in_a_run_is_no_wrong_program(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho 'bwrap: Resource temporarily unavailable' >&2\nexit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setattr(sandbox, "_command", [str(tmp_path / "bwrap")])
    for call in (lambda: sandbox.run("print(1)", ""), lambda: wrong(sandbox, "def f(x): return 1", *TESTS)):
        with pytest.raises(RuntimeError, match=r"sandbox was not made.*Resource temporarily unavailable"):
            call()


def test_a_time_limit_of_the_grading_ends_a_program(sandbox: Sandbox) -> None:
    from titan_pt.tasks.time_limit import TimeLimit, TimeLimitExpired

    assert threading.current_thread() is threading.main_thread()
    before = children()
    with TimeLimit(0.3) as limit, pytest.raises(TimeLimitExpired):
        limit.run(lambda: sandbox.run("import time\ntime.sleep(60)", ""))
    assert children() == before
