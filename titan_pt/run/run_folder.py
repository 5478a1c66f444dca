"""The run folder (`job.dump_folder`): its files, its lock, its config."""

import fcntl
import logging
import os
import socket
from pathlib import Path
from typing import IO

from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.run.exit_codes import CannotStart
from titan_pt.run.files import make_writable, write_atomic

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


def lock_run_folder(folder: Path) -> IO[str]:
    """Hold the run folder until the file is closed: a second run in it would drop the first one's rows and saves.

    Raises:
        CannotStart: another process holds it, or the disk is full.
        ConfigError: the lock's file cannot be written to.
    """
    try:
        file = (folder / LOCK_FILE).open("a+", encoding="utf-8", errors="replace")
    except OSError as error:
        from titan_pt.run.unwritable import unwritable

        raise unwritable(f"job.dump_folder: {folder / LOCK_FILE}", error, "remove it, or name another folder") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
    except BlockingIOError:
        file.seek(0)
        holder = file.readline(200).strip()
        file.close()
        raise CannotStart(
            f"job.dump_folder: {folder} is in use by another run{f', {holder}' if holder else ''}; stop it or wait"
        ) from None
    except OSError as error:
        logger.warning(f"job.dump_folder: its file system has no locks ({error}); see that no other run uses it")
    return file


def write_config(config: JobConfig) -> None:
    """Write the resolved config into the run folder."""
    write_atomic(run_folder(config) / CONFIG_FILE, config.to_toml())
