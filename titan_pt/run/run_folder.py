"""The run folder (`job.dump_folder`): its files, its lock, its config."""

import fcntl
import logging
from pathlib import Path
from typing import IO

from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.run.files import make_writable, write_atomic

logger = logging.getLogger("titan_pt")

CONFIG_FILE, METRICS_FILE, LOCK_FILE = "config.toml", "metrics.jsonl", ".lock"


def prepare_run_folder(config: JobConfig) -> Path:
    """Make job.dump_folder and its checkpoint folder.

    Raises:
        ConfigError: one of them cannot be written to, or holds a folder where a file belongs or the reverse.
    """
    options = config.checkpoint
    folder = run_folder(config)
    make_writable(folder, f"job.dump_folder = {config.job.dump_folder!r}")
    if options.enable and not options.load_only:
        make_writable(folder / options.folder, f"checkpoint.folder = {options.folder!r}")
    events = folder / config.metrics.save_tb_folder
    if config.metrics.enable_tensorboard and events.exists() and not events.is_dir():
        raise ConfigError(
            f"metrics.save_tb_folder = {config.metrics.save_tb_folder!r}: {events} is a file; move it away"
        )
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
        RuntimeError: another process holds it.
    """
    file = (folder / LOCK_FILE).open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise RuntimeError(f"job.dump_folder: {folder} is in use by another run; stop it or wait") from None
    except OSError as error:
        logger.warning(f"job.dump_folder: its file system has no locks ({error}); see that no other run uses it")
    return file


def write_config(config: JobConfig) -> None:
    """Write the resolved config into the run folder."""
    write_atomic(run_folder(config) / CONFIG_FILE, config.to_toml())
