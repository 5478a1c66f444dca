"""The run folder (`job.dump_folder`): its files, its lock, its config."""

import contextlib
import fcntl
import logging
import os
import socket
from pathlib import Path

from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.run.exit_codes import CannotStart
from titan_pt.run.files import make_writable, write_atomic
from titan_pt.version import stamped

logger = logging.getLogger("titan_pt")

CONFIG_FILE, METRICS_FILE, LOCK_FILE = "config.toml", "metrics.jsonl", ".lock"


def prepare_run_folder(config: JobConfig) -> Path:
    """Make job.dump_folder and all folders that the run will write to.

    Raises:
        ConfigError: one of them cannot be written to, or holds a folder where a file belongs or the reverse.
    """
    folder = run_folder(config)
    make_writable(folder, f"job.dump_folder = {config.job.dump_folder!r}")
    for key, name in config.written_folders():
        if (folder / name).exists() and not (folder / name).is_dir():
            raise ConfigError(f"{key}: {folder / name} is a file; move it away")
        make_writable(folder / name, f"{key}: {folder / name}")
    if (folder / "data").is_dir():  # of listings, which not every run has
        make_writable(folder / "data", f"data.sources: {folder / 'data'}")
    for name in (METRICS_FILE, CONFIG_FILE, LOCK_FILE):
        if (folder / name).is_dir():
            raise ConfigError(f"job.dump_folder = {config.job.dump_folder!r}: its {name} is a folder; move it away")
    return folder


def run_folder(config: JobConfig) -> Path:
    """job.dump_folder as a path."""
    return Path(config.job.dump_folder)


class RunLock(contextlib.ExitStack):
    """Folders that are held until this is closed, by a file in each of them that is there no longer than its run."""

    killed = False
    """Whether the run that held one of them before this one did not end itself."""

    def hold(self, folder: Path, key: str) -> None:
        """Hold one more folder; raises as `lock_run_folder` does."""
        path = folder / LOCK_FILE
        try:
            file = self.enter_context(path.open("a+", encoding="utf-8", errors="replace"))
        except OSError as error:
            from titan_pt.run.unwritable import unwritable

            raise unwritable(f"{key}: {path}", error, "remove it, or name another folder") from None
        file.seek(0)
        holder = file.readline(200).strip()
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not (path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())):
                self.hold(folder, key)  # its run removed it meanwhile
                return
        except BlockingIOError:
            raise CannotStart(
                f"{key}: {folder} is in use by another run{f', {holder}' if holder else ''}; stop it or wait"
            ) from None
        except OSError as error:
            logger.warning(f"{key}: its file system has no locks ({error}); see that no other run uses it")
            return
        self.killed |= bool(holder)
        self.callback(path.unlink, missing_ok=True)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()


def lock_run_folder(folder: Path, checkpoints: Path | None = None) -> RunLock:
    """Hold the run folder, and that of its checkpoints wherever it is: a second run would drop rows and steps.

    Raises:
        CannotStart: another process holds one of them.
        ConfigError: a lock's file cannot be written to.
    """
    lock = RunLock()
    try:
        lock.hold(folder, "job.dump_folder")
        if checkpoints is not None and not (checkpoints.exists() and checkpoints.samefile(folder)):
            checkpoints.mkdir(parents=True, exist_ok=True)
            lock.hold(checkpoints, "checkpoint.folder")
    except BaseException:
        lock.close()
        raise
    return lock


def write_config(config: JobConfig) -> None:
    """Write the resolved config into the run folder, under the version that runs it."""
    write_atomic(run_folder(config) / CONFIG_FILE, stamped(config.to_toml()))
