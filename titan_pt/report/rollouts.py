"""The rollouts of runs for a page: an index of all, and their texts in compressed parts that are opened one by one."""

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from titan_pt.report.record import RunRecord, is_number, read_json_lines
from titan_pt.run.outgoing import redact
from titan_pt.run.secrets import printable

FOLDER = "rollouts"
PART_ROWS = 200
"""PackedRollouts whose texts are in one part."""
_LONGEST_TEXT = 40_000
_INDEX = ("run", "step", "task", "id", "reward", "tokens", "strict", "lenient", "finish", "advantage")
_TEXTS = ("prompt", "completion", "gold", "rewards", "sample", "turns")


@dataclass
class PackedRollouts:
    """What a page has of the rollouts of some runs."""

    index: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in _INDEX})
    """Columns of one value a rollout, by which they are filtered and ordered."""
    parts: list[str] = field(default_factory=list)
    """Texts of PART_ROWS rollouts each: JSON, compressed with gzip, as base64."""
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.index["step"])


def read_rollouts(runs: Sequence[RunRecord], most: int) -> PackedRollouts:
    """The rollouts of the runs, at most about `most` of them together: then of some steps, spread evenly.

    A step's are taken all or not at all, so that the groups stay whole.
    """
    found, texts = PackedRollouts(), []
    with_some = [run for run in runs if (run.folder / FOLDER).is_dir()]
    for run in with_some:
        files = _files(run.folder / FOLDER)
        taken = _spread(files, max(most // len(with_some), 1))
        if len(taken) < len(files):
            found.notes.append(
                f"{run.name}: the rollouts of {len(taken):,} of its {len(files):,} recorded steps, spread evenly; "
                "--rollouts takes more"
            )
        number = next(n for n, other in enumerate(runs) if other is run)
        for step, path in taken:
            for row in read_json_lines(path, found.notes):
                _add(found.index, row, number, step)
                texts.append(_texts(row))
    found.parts = [_packed(texts[i : i + PART_ROWS]) for i in range(0, len(texts), PART_ROWS)]
    return found


def _files(folder: Path) -> list[tuple[int, Path]]:
    names = ((path.stem.removeprefix("step-"), path) for path in folder.glob("step-*.jsonl"))
    return sorted((int(step), path) for step, path in names if step.isascii() and step.isdigit())


def _spread(files: list[tuple[int, Path]], most: int) -> list[tuple[int, Path]]:
    """Every k-th file and the last one, for the least k with which they have about `most` lines."""
    total = sum(_lines(path) for _, path in files)
    stride = max(1, -(-total // most))
    return [file for number, file in enumerate(files) if (len(files) - 1 - number) % stride == 0]


def _lines(path: Path) -> int:
    try:
        with path.open("rb") as file:
            return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
    except OSError:
        return 0


def _add(index: dict[str, list[Any]], row: Mapping[str, Any], run: int, step: int) -> None:
    def number(key: str) -> float | None:
        return float(f"{row[key]:.6g}") if is_number(row.get(key)) else None

    def truth(key: str) -> bool | None:
        return row[key] if isinstance(row.get(key), bool) else None

    values = {
        "run": run,
        "step": step,
        "task": str(row.get("task", "")),
        "id": str(row.get("id", "")),
        "reward": number("reward"),
        "tokens": number("num_tokens"),
        "strict": truth("strict"),
        "lenient": truth("lenient"),
        "finish": str(row.get("finish_reason", "")),
        "advantage": number("advantage"),
    }
    for name in _INDEX:
        index[name].append(values[name])


def _texts(row: Mapping[str, Any]) -> list[Any]:
    return [_turns(row.get(name)) if name == "turns" else _short(row.get(name)) for name in _TEXTS]


def _turns(value: Any) -> list[list[str]] | None:
    """[role, text] of each turn of an episode; None where the rollout has one turn, as all of older runs."""
    if not isinstance(value, list):
        return None
    told = [turn for turn in value if isinstance(turn, dict)]
    return [[str(_short(str(turn.get(name, "")))) for name in ("role", "content")] for turn in told]


def _short(value: Any) -> Any:
    if isinstance(value, str):
        cut = len(value) - _LONGEST_TEXT
        shown = value if cut <= 0 else f"{value[:_LONGEST_TEXT]}\n[{cut:,} more characters are in the file]"
        return printable(redact(shown))
    if isinstance(value, dict):  # parts of a reward
        return {str(key): float(f"{part:.6g}") if is_number(part) else str(part) for key, part in value.items()}
    return value if is_number(value) else None if value is None else str(value)


def _packed(rows: list[Any]) -> str:
    content = json.dumps(rows, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    return base64.b64encode(gzip.compress(content, compresslevel=6, mtime=0)).decode("ascii")
