"""The step-N folders of runs, whole or not. No torch here."""

import re
from collections.abc import Iterator
from pathlib import Path

from titan_pt.config.schema.job_config import JobConfig
from titan_pt.run.run_folder import run_folder

REQUIRED = ("train.json", "data.json", "tensors/.metadata")
"""Files without which a step is not whole."""


def iter_steps(folder: Path) -> Iterator[tuple[int, Path]]:
    """Yield (step, folder) of every `step-N`, whole or not, the highest step first."""
    steps = [
        (int(match[1]), path)
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (match := re.fullmatch(r"step-(\d+)", path.name)) and path.is_dir()
    ]
    yield from sorted(steps, reverse=True)


def has_steps(config: JobConfig) -> bool:
    """Whether the run folder holds steps to resume from."""
    options = config.checkpoint
    return options.enable and any(iter_steps(run_folder(config) / options.folder))
