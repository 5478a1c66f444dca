"""A run that is watched by its launcher, or else by a process of its own: none sees that it is itself stopped."""

import contextlib
import faulthandler
import mmap
import os
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from titan_pt.config.schema.job_config import JobConfig
from titan_pt.run import heartbeat
from titan_pt.run.exit_codes import EXIT_CODES_VARIABLE, ExitCode
from titan_pt.run.failure import print_once
from titan_pt.run.run_folder import run_folder
from titan_pt.run.watchdog import PAGE_BYTES, STACKS_SIGNAL

_POLL_SECONDS = 0.5


def be_watched(config: JobConfig, closed: threading.Event, record: Callable[[BaseException], None]) -> None:
    """Show this process to its launcher; without one start a watcher, and end the process where the job hangs.

    Args:
        closed: set when the run is over, for which this waits.
        record: tells torchrun the reason.
    """
    folder = os.environ.get(EXIT_CODES_VARIABLE)
    if error_file := os.environ.get("TORCHELASTIC_ERROR_FILE"):  # torchrun's: one folder a node, in it one a rank
        folder = folder or str(Path(error_file).parent.parent)
    with show(folder) as page:
        if not page or EXIT_CODES_VARIABLE in os.environ:
            closed.wait()
            return
        paths = f"{folder}/beats-*" if folder else page
        stacks = run_folder(config) / config.comm.save_traces_folder
        command = [sys.executable, "-S", "-m", "titan_pt.run.watchdog", str(os.getpid()), str(stacks), paths]
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            output = process.stdout
            while output and not closed.wait(_POLL_SECONDS) and process.poll() is None:
                if select.select([output], [], [], 0)[0] and (reason := output.readline().decode().strip()):
                    record(RuntimeError(reason))
                    print_once(f"failed: {reason}")
                    os._exit(ExitCode.FAILED)
            process.kill()


@contextlib.contextmanager
def show(folder: str | None) -> Iterator[str]:
    """Context in which watchers see this process, in a file of this folder or one without a name; gives its path.

    The path is empty where there are no such files.
    """
    if folder:
        path = f"{folder}/beats-{os.environ.get('RANK', '0')}"
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    elif hasattr(os, "memfd_create"):  # Linux
        file = os.memfd_create("titan_pt-beats")
        path = f"/proc/{os.getpid()}/fd/{file}"
    else:
        yield ""
        return
    os.ftruncate(file, PAGE_BYTES)
    os.lseek(file, PAGE_BYTES, os.SEEK_SET)
    faulthandler.register(STACKS_SIGNAL, file)
    memory = memoryview(mmap.mmap(file, PAGE_BYTES))[: heartbeat.PAGE.size]
    heartbeat.write_to(memory)
    try:
        yield path
    finally:
        heartbeat.write_to(memoryview(bytearray(heartbeat.PAGE.size)))
        faulthandler.unregister(STACKS_SIGNAL)
        os.close(file)
