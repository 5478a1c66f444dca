"""Processes of Python that do not import torch again: a server that has imported it forks them.

A process of a test spends most of its seconds on imports. `Popen` is subprocess's own in all else: what it starts is a
child of this process, with its process id, signals and exit code. Workers of a launcher that was forked are forks,
too, and children of the launcher. Tests of shell scripts and of imports start real processes.
"""

import atexit
import ctypes
import functools
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

TESTS = Path(__file__).resolve().parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
"""Of the server, whatever the test that needs it first has set."""
PRELOADED = [
    "numpy.random",
    "titan_pt.build",
    "titan_pt.components.checkpoint.run_state",
    "titan_pt.data.builtin.sources",
    "titan_pt.data.sources.opening",
    "titan_pt.data.stream.loader",
    "titan_pt.distributed.activation_checkpoint",
    "titan_pt.distributed.world",
    "titan_pt.models.transformer.parallelize",
    "titan_pt.run.ending",
    "titan_pt.trainer",
    "titan_pt.trainers.pretrain",
    "titan_pt.trainers.summary",
    "torch._dynamo",
    "torch.distributed.run",
]
"""Not titan_pt.train and titan_pt.launch: runpy warns of a module that was imported before."""
LAUNCHERS = ("titan_pt.launch", "torch.distributed.run")
_PR_SET_CHILD_SUBREAPER = 36
_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class Popen(subprocess.Popen):  # type: ignore[type-arg]
    """subprocess.Popen; `python -m MODULE` and `python SCRIPT` by this interpreter are forks on Linux."""

    def _execute_child(self, args: Any, *rest: Any) -> None:
        words = [] if isinstance(args, (str, bytes, os.PathLike)) else [os.fspath(word) for word in args]
        namespace, words = (words[:4], words[4:]) if words[:3] == ["ip", "netns", "exec"] else ([], words)
        program = words[1:] if words[1:2] != ["-u"] else words[2:]
        starts = program and (program[0] == "-m" or program[0].endswith(".py"))
        if sys.platform != "linux" or words[:1] != [sys.executable] or not starts:
            super()._execute_child(args, *rest)  # type: ignore[misc]
            return
        folder, env, pipes, new_session = rest[4], rest[5], rest[9:15], rest[20]
        request = {
            "arguments": program,
            "folder": os.fspath(folder) if folder else os.getcwd(),
            "env": dict(os.environ) if env is None else {os.fspath(name): os.fspath(env[name]) for name in env},
            "ignored": [number for number in _SIGNALS if signal.getsignal(number) is signal.SIG_IGN],
            "new_session": bool(new_session),
        }
        standard = [pipe if pipe != -1 else own for own, pipe in enumerate((pipes[0], pipes[3], pipes[5]))]
        self.pid: int = server(*namespace).fork(request, standard)
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]


class Server:
    """The other end of `serve`."""

    def __init__(self, pid: int, connection: socket.socket) -> None:
        self.pid, self._connection, self._lock = pid, connection, threading.Lock()

    def fork(self, request: dict[str, Any], standard: Sequence[int]) -> int:
        """The id of a new child of this process."""
        data = json.dumps(request).encode()
        with self._lock:
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # the server's orphans become this one's
            socket.send_fds(self._connection, [len(data).to_bytes(8, "big")], list(standard))
            self._connection.sendall(data)
            answer = self._connection.recv(8)
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        assert answer, "the fork server has ended"
        return int.from_bytes(answer, "big")


_inherited: Server | None = None


def server(*namespace: str) -> Server:
    """Of this process, which in a launcher is the one that it forked; `namespace` is the command that enters one."""
    return _inherited or _started(*namespace)


@functools.cache
def _started(*namespace: str) -> Server:
    own, other = socket.socketpair()
    code = f"import forked; forked.preload(); forked.serve({other.fileno()})"
    process = subprocess.Popen(
        [*namespace, sys.executable, "-c", code],
        pass_fds=[other.fileno()], stdin=subprocess.DEVNULL, env=ENVIRONMENT, cwd=TESTS.parent,
    )  # fmt: skip
    process.returncode = 0  # nobody waits for it: it ends with this process
    other.close()
    return Server(process.pid, own)


def preload() -> None:
    """Import what runs import, of which a fork then has nothing to do."""
    import gc

    for module in PRELOADED:
        importlib.import_module(module)
    from titan_pt.components import flops

    flops.measure_matmul = lambda *_, **__: 1e11  # a third of a tiny run
    gc.collect()
    gc.freeze()


def serve(descriptor: int) -> None:
    """Fork for each request, until whoever asks is gone. The fork is a child of a process that ends at once."""
    for number in _SIGNALS:  # of a terminal, to all of its processes
        signal.signal(number, signal.SIG_IGN)
    connection = socket.socket(fileno=descriptor)
    while True:
        size, standard, _, _ = socket.recv_fds(connection, 8, 3)
        if not size:
            return
        data = b""
        while len(data) < int.from_bytes(size, "big"):
            data += connection.recv(1 << 16)
        told, tell = os.pipe()
        adopted, adopt = os.pipe()
        if (middle := os.fork()) == 0:
            if (child := os.fork()) == 0:
                os.close(adopt)
                os.read(adopted, 1)  # to its end
                become(standard, **json.loads(data))
            os.write(tell, child.to_bytes(8, "big"))
            os._exit(0)
        os.waitpid(middle, 0)
        connection.sendall(os.read(told, 8))
        for file in (told, tell, adopted, adopt, *standard):
            os.close(file)


def become(standard: Sequence[int], arguments: list[str], **told: Any) -> NoReturn:
    """Be the process of `python ARGUMENTS`; the others as of `_prepare`."""
    code = 0
    try:
        _prepare(standard, arguments, **told)
        run(arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException as error:
        traceback.print_exc()
        code = 130 if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _prepare(
    standard: Sequence[int],
    arguments: Sequence[str],
    folder: str,
    env: Mapping[str, str],
    ignored: Sequence[int] = (),
    new_session: bool = False,
) -> None:
    for number in _SIGNALS:
        default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN if number in ignored else default)
    if new_session:
        os.setsid()
    for target, descriptor in enumerate(standard):
        os.dup2(descriptor, target)
    os.closerange(3, 1 << 16)
    _open_streams()
    os.chdir(folder)
    before = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ.clear()
    os.environ.update(env)
    if arguments[0] == "-m" and arguments[1] in LAUNCHERS:
        _leave_server()
    first = folder if arguments[0] == "-m" else str(Path(arguments[0]).resolve().parent)
    told = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [first, *told, *(path for path in sys.path if path and path not in before)]


def run(arguments: Sequence[str]) -> None:
    """Do as `python ARGUMENTS` does."""
    if arguments[0] == "-m":
        sys.argv = list(arguments[1:])
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(arguments)
        runpy.run_path(arguments[0], run_name="__main__")


def _open_streams() -> None:
    for target, standard, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        errors = "backslashreplace" if standard == "stderr" else None
        # Of a fork of a fork, the streams before these end here, and would close what they were of.
        stream = open(target, mode, buffering=1, encoding="utf-8", errors=errors, closefd=False)  # noqa: SIM115
        stream.buffer.raw.name = f"<{standard}>"  # type: ignore[attr-defined]
        setattr(sys, standard, stream)


def _leave_server() -> None:
    """Fork a server for the workers of this launcher, before it has threads; what it starts goes by that server."""
    global _inherited
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    own, other = socket.socketpair()
    if (pid := os.fork()) == 0:
        own.close()
        for target in (0, 1, 2):  # whoever reads them waits for the end of all that have them
            os.dup2(os.open(os.devnull, os.O_RDWR), target)
        serve(other.detach())
        os._exit(0)
    other.close()
    _inherited = Server(pid, own)
    subprocess.Popen = subprocess_handler.Popen = Popen  # type: ignore[misc]
