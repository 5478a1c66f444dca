"""A run folder as it lies there, whole, damaged or still growing: what cannot be read is noted and left out."""

import contextlib
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from titan_pt.config.errors import ConfigError
from titan_pt.config.resolve.toml_files import tomllib
from titan_pt.run.black_boxes import boxes
from titan_pt.run.goodput import all_seconds
from titan_pt.run.ledger import LEDGER_FILE
from titan_pt.run.outgoing import redact, redacted
from titan_pt.run.own_json import read_lines, read_own, read_steps
from titan_pt.run.run_folder import CONFIG_FILE, LOCK_FILE, METRICS_FILE

_HASH = re.compile(r"\b([0-9a-f]{10})[0-9a-f]{30}\b")
_QUIET_SECONDS = 900.0
"""A run that holds its folder and wrote nothing for so long may have been killed."""


@dataclass(frozen=True)
class Event:
    """Something that happened to a run, beside its steps."""

    step: int
    time: float | None
    """Seconds since 1970, where it is known."""
    kind: str
    """start, restart, end, bad step, skipped or rewind."""
    text: str


@dataclass
class RunRecord:
    """What a run folder holds."""

    folder: Path
    name: str = ""
    """Short name, unlike that of the other runs of a report."""
    config: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Rows of metrics.jsonl by step, of finite numbers."""
    not_finite: dict[str, list[int]] = field(default_factory=dict)
    """Steps by the key whose value is no finite number there."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds of all starts by what took them."""
    events: list[Event] = field(default_factory=list)
    state: str = "no metrics"
    """finished, running, stopped or no metrics."""
    notes: list[str] = field(default_factory=list)
    """What is missing or damaged, for the reader."""

    @property
    def total_steps(self) -> int | None:
        """Steps that the config asks for, where it says so."""
        steps = (self.config.get("training") or {}).get("steps")
        return steps if isinstance(steps, int) and steps > 0 else None

    @property
    def made_by(self) -> str:
        """The version and the commit that the run's last start was of, where its config says so."""
        first = self.config_text.partition("\n")[0]
        return _HASH.sub(r"\1", first.removeprefix("# ")) if first.startswith("# titan_pt ") else ""

    def column(self, key: str) -> list[float]:
        """The values of a key over the steps that have it."""
        return [row[key] for row in self.rows if key in row]


def read_runs(folders: Sequence[Path]) -> list[RunRecord]:
    """The records of run folders, each under a name of its own.

    Raises:
        ConfigError: one is no run folder, or is given twice.
    """
    for number, folder in enumerate(folders):
        if not folder.is_dir():
            from titan_pt.components.checkpoint.no_run import no_run

            raise ConfigError(f"RUN = {str(folder)!r}: {no_run(str(folder))}")
        if not is_run(folder):
            near = [str(path) for path in _runs_in(folder) or folder.parents if is_run(path)]
            raise ConfigError(
                f"RUN = {str(folder)!r}: is no run folder: it has neither {METRICS_FILE} nor {CONFIG_FILE}; "
                + (f"give a run: {' '.join(near)}" if near else "give the job.dump_folder of a run")
            )
        if any(folder.samefile(other) for other in folders[:number]):
            raise ConfigError(f"RUN = {str(folder)!r}: is given twice")
    runs = [read_run(folder) for folder in folders]
    for run, name in zip(runs, short_names(folders), strict=True):
        run.name = name
    return runs


def is_run(folder: Path) -> bool:
    """Whether a folder holds something of a run that can be read."""
    return any(os.path.exists(folder / name) for name in (METRICS_FILE, CONFIG_FILE, LEDGER_FILE))


def _runs_in(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and is_run(path))
    except OSError:
        return []


def read_run(folder: Path) -> RunRecord:
    """The record of one run folder."""
    run = RunRecord(folder, name=folder.resolve().name)
    _read_config(run)
    _read_numbers(run, _rows(folder / METRICS_FILE, run.notes))
    starts = list(read_json_lines(folder / LEDGER_FILE, run.notes))
    with contextlib.suppress(OSError):  # which is noted
        run.seconds = all_seconds(folder / LEDGER_FILE)
    run.events = sorted(
        [*_starts(starts), *_bad_steps(folder), *_skips(run.rows)], key=lambda event: (event.step, event.time or 0.0)
    )
    run.state = _state(run, starts)
    return run


def short_names(folders: Sequence[Path]) -> list[str]:
    """The ends of the paths that tell them apart: a name alone where that is enough."""
    parts = [folder.resolve().parts for folder in folders]
    longest = max(map(len, parts), default=1)
    length = next(n for n in range(1, longest + 1) if n == longest or len({p[-n:] for p in parts}) == len(parts))
    return ["/".join(p[-length:]).replace("//", "/") for p in parts]


def flat_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config by dotted keys: `optimizer.lr`, `data.sources.wiki.weight` for a row that has a name."""
    found: dict[str, Any] = {}

    def add(prefix: str, value: Any) -> None:
        rows = value if isinstance(value, list) and value and all(isinstance(row, dict) for row in value) else None
        if isinstance(value, dict):
            for key, inner in value.items():
                add(f"{prefix}.{key}" if prefix else str(key), inner)
        elif rows:
            for number, row in enumerate(rows):
                add(f"{prefix}.{row.get('name', number)}", {k: v for k, v in row.items() if k != "name"} or "present")
        else:
            found[prefix] = value

    add("", dict(config))
    return found


def _read_config(run: RunRecord) -> None:
    try:
        text = (run.folder / CONFIG_FILE).read_text(encoding="utf-8")
        run.config = redacted(tomllib.loads(text))
        run.config_text = redact(text)
    except FileNotFoundError:
        run.notes.append(f"no {CONFIG_FILE}: its keys are not known")
    except OSError as error:
        run.notes.append(f"{CONFIG_FILE} cannot be read: {error.strerror}")
    except (ValueError, RecursionError):
        run.notes.append(f"{CONFIG_FILE} is damaged: its keys are not known")


def read_json_lines(
    path: Path, notes: list[str], read: Callable[[Path], Iterable[tuple[int, bytes, Any]]] = read_lines
) -> Iterator[dict[str, Any]]:
    """The objects of a file with one a line; notes those that are not whole."""
    damaged: list[int] = []
    try:
        for number, line, value in read(path):
            if value is not None:
                yield value
            elif line.endswith(b"\n"):
                damaged.append(number)
            else:
                notes.append(f"{path.name}: its last line is not whole yet, and left out")
    except FileNotFoundError:
        notes.append(f"no {path.name}")
    except OSError as error:
        notes.append(f"{path.name} cannot be read: {error.strerror}")
    if damaged:
        count = "a line is" if len(damaged) == 1 else f"{len(damaged)} lines are"
        notes.append(f"{path.name}: {count} damaged and left out, the first is line {damaged[0]}")


def _rows(path: Path, notes: list[str]) -> Iterator[dict[str, Any]]:
    found = list(read_json_lines(path, notes, read_steps))
    if not found and path.exists():
        notes.append(f"{path.name} has no step yet")
    yield from found


def _read_numbers(run: RunRecord, rows: Iterator[dict[str, Any]]) -> None:
    """The finite numbers of each row, one row a step: of a step that is there twice, the later values."""
    steps: dict[int, dict[str, Any]] = {}
    for row in rows:
        steps.setdefault(row["step"], {}).update(row)
    for step in sorted(steps):
        run.rows.append({key: value for key, value in steps[step].items() if is_number(value)})
        for key, value in steps[step].items():
            if value is None or (isinstance(value, float) and not is_number(value)):
                run.not_finite.setdefault(key, []).append(step)
    for key in ("loss", "val_loss"):
        if found := run.not_finite.get(key):
            run.notes.append(f"{key} was not finite at {len(found):,} steps, the first is step {found[0]:,}")


def is_number(value: Any) -> bool:
    """Whether a value is a finite number that a float can hold, and no truth value."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return -1e300 < value < 1e300 and math.isfinite(value)


def _starts(lines: list[dict[str, Any]]) -> Iterator[Event]:
    begun = 0
    for line in lines:
        step = int(line["step"]) if is_number(line.get("step")) else 0
        when = float(line["time"]) if is_number(line.get("time")) else None
        if line.get("begins"):
            again = f"goes on after step {step}" if step else "trains from step 1"
            yield Event(step, when, "restart" if begun else "start", f"start {begun + 1} {again}")
            begun += 1
        if line.get("done"):
            yield Event(step, when, "end", f"finished at step {step}")


def _bad_steps(folder: Path) -> Iterator[Event]:
    for path in boxes(folder):
        box = read_own(path / "box.json")
        documents = box.get("documents")
        count = f"; {len(documents)} documents" if isinstance(documents, list) else ""
        why = redact(str(box.get("why", "box.json cannot be read")))
        text = f"{why}; answer: {box.get('answer', 'not known')}{count}; {path.parent.name}/{path.name}"
        when = float(box["time"]) if is_number(box.get("time")) else None
        yield Event(int(path.name.split("-")[1]), when, "bad step", text)


def _skips(rows: list[dict[str, Any]]) -> Iterator[Event]:
    for key, kind, what in (
        ("skipped_steps", "skipped", "updates were skipped"),
        ("rewinds", "rewind", "rewinds were made"),
    ):
        before = 0
        for row in rows:
            if row.get(key, before) > before:
                yield Event(row["step"], row.get("time"), kind, f"{row[key]:g} {what} so far")
            before = row.get(key, before)


def _state(run: RunRecord, starts: list[dict[str, Any]]) -> str:
    done = bool(starts) and bool(starts[-1].get("done"))
    if done or (run.rows and run.total_steps is not None and run.rows[-1]["step"] >= run.total_steps):
        return "finished"
    try:
        age = time.time() - max(
            (run.folder / name).stat().st_mtime
            for name in (METRICS_FILE, LEDGER_FILE, LOCK_FILE)
            if (run.folder / name).exists()
        )
        held = (run.folder / LOCK_FILE).exists()
    except (OSError, ValueError):
        return "stopped" if run.rows else "no metrics"
    if held and age < _QUIET_SECONDS:
        run.notes.append(f"the run is still going: its last line is {age:.0f} s old; make the report again later")
        return "running"
    if held:
        run.notes.append(f"the run wrote nothing for {age / 60:,.0f} minutes and did not end itself: hung or killed")
    return "stopped" if run.rows else "no metrics"


def dump(value: Any) -> str:
    """A value of a config for people: as JSON, a text without its quotes."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def encodable(text: str) -> str:
    """A text that UTF-8 can hold: half of a pair, of JSON or of a folder's name, becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")
