"""Ranks that a launcher started: what its variables say, and how the ranks meet. Imported where there are any."""

import os
from datetime import timedelta

import torch.distributed as dist

from titan_pt.config.errors import ConfigError
from titan_pt.run.exit_codes import CannotStart

LAUNCH_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def launched_size() -> int:
    """The number of ranks.

    Raises:
        ConfigError: the variables are incomplete, as those that are left over may be, or are no numbers.
    """
    advice = "start ranks with titan_pt.launch or torchrun, which set all of them, or unset what is left over"
    values = {name: os.environ.get(name, "") for name in LAUNCH_VARIABLES}
    missing = [name for name, value in values.items() if not value]
    if missing:
        found = ", ".join(f"{name} = {value!r}" for name, value in values.items() if value)
        raise ConfigError(f"{found or 'RANK'} in the environment, without {', '.join(missing)}: {advice}")
    limits = {"WORLD_SIZE": 2**20, "RANK": 2**20, "MASTER_PORT": 2**16}
    for name, limit in limits.items():
        if not (values[name].isascii() and values[name].isdigit() and int(values[name][:9]) < limit):
            raise ConfigError(f"{name} = {values[name]!r} in the environment: must be a number; {advice}")
    rank, size = values["RANK"], values["WORLD_SIZE"]
    if int(rank) >= int(size):
        raise ConfigError(f"RANK = {rank!r} in the environment: must be below WORLD_SIZE = {size!r}; {advice}")
    return int(size)


def meet(backend: str, timeout: timedelta) -> None:
    """Make the process group of all ranks.

    Raises:
        CannotStart: they do not meet.
    """
    try:
        dist.init_process_group(backend, timeout=timeout)
    except dist.DistError as error:
        values = ", ".join(f"{name} = {os.environ[name]}" for name in LAUNCH_VARIABLES)
        host = os.environ["RANK"] == "0" and "EADDRINUSE" in str(error)
        why = "another process uses MASTER_PORT; take another one" if host else "the ranks did not meet in time; see "
        why += "" if host else "that all run and reach MASTER_ADDR, or unset what another job left over"
        raise CannotStart(f"{values}: {why} ({str(error).strip().splitlines()[0]})") from None
