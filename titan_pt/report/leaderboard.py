"""`job.leaderboard`: a Markdown table of finished runs, the best first, with the keys in which they differ."""

import contextlib
import fcntl
import json
import logging
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.report.figures import FIGURES, differing_keys
from titan_pt.report.markdown import table
from titan_pt.report.record import RunRecord, dump, encodable, is_run, read_runs
from titan_pt.run.files import parse_json, read_text, write_atomic
from titan_pt.run.run_folder import run_folder

logger = logging.getLogger("titan_pt")

_SHOWN = ("bits per byte", "val loss", "tokens/s", "tokens", "steps", "time in training")
_LONGEST_CELL = 60
_RUNS = re.compile(r"^<!-- runs: (\[.*\]) -->$", re.MULTILINE)


def add_run(config: JobConfig) -> None:
    """Write the table anew with this run in it, and log its place. A table that cannot be written costs no run."""
    path, folder = Path(str(config.job.leaderboard)), run_folder(config)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path.parent):
            runs = ranked(read_runs([*(other for other in _earlier(path) if not _same(other, folder)), folder]))
            write_atomic(path, leaderboard(runs, path))
    except (OSError, ConfigError) as error:
        logger.warning(f"job.leaderboard: {path} is not written: {error}")
        return
    place = next(number for number, run in enumerate(runs, 1) if _same(run.folder, folder))
    logger.info(f"Leaderboard {path}: number {place} of {len(runs)}")


def ranked(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """The runs by their last bits per byte, the fewest first; those without follow."""
    figure = next(figure for figure in FIGURES if figure.name == "bits per byte")

    def place(run: RunRecord) -> float:
        value = figure.value(run)
        return math.inf if value is None else value

    return sorted(runs, key=place)


def leaderboard(runs: Sequence[RunRecord], path: Path) -> str:
    """The text of the table, with the folders of its runs in a comment."""
    figures = {figure.name: figure for figure in FIGURES if figure.name in _SHOWN}
    keys = differing_keys(runs)
    rows = []
    for number, run in enumerate(runs):
        values = [figures[name].value(run) for name in _SHOWN]
        cells = ["" if v is None else figures[name].text(v) for name, v in zip(_SHOWN, values, strict=True)]
        different = ["" if found[number] is None else _short(dump(found[number])) for found in keys.values()]
        rows.append([str(number + 1), run.name, *cells, *different])
    folders = json.dumps([os.path.relpath(run.folder, path.parent) for run in runs])
    lines = [
        f"# {path.stem}: {len(runs)} finished {'run' if len(runs) == 1 else 'runs'}, the fewest bits per byte first",
        "",
        *table(["", "run", *_SHOWN, *keys], rows),
        "",
        "Written anew at the end of each run; one whose folder is gone leaves the table.",
        "",
        f"<!-- runs: {folders.replace('>', chr(92) + 'u003e')} -->",
    ]
    return encodable("\n".join(lines) + "\n")


def _earlier(path: Path) -> list[Path]:
    """The run folders of the table that is there, each once, without those that hold no run any more.

    Raises:
        ConfigError: what is there is no such table.
    """
    text = read_text(path) if path.is_file() else ""
    if not text.strip():
        return []
    names = None
    with contextlib.suppress(IndexError, ValueError):
        names = parse_json(_RUNS.findall(text)[-1])
    if names is None or not all(isinstance(name, str) for name in names):
        raise ConfigError(
            "its text has no line <!-- runs: [...] --> of a leaderboard, or a damaged one; name another file, or "
            "repair the line or remove the file, and start the finished run again"
        )
    return list({folder.resolve(): folder for name in names if is_run(folder := path.parent / name)}.values())


def _same(folder: Path, other: Path) -> bool:
    return folder.resolve() == other.resolve()


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_CELL else f"{text[: _LONGEST_CELL - 1]}…"


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one run after another write here, where the file system has locks."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
