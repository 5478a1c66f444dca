"""Problem sets from local files or the hub, split so that no question is both trained and evaluated on."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from titan_pt.config.errors import ConfigError, one_of, shown
from titan_pt.config.schema.grpo import EvaluationTask, GrpoTask
from titan_pt.data.builtin.questions import is_held_out, normalised
from titan_pt.data.sources.local import checked_text, matching_files, quiet_datasets
from titan_pt.data.sources.rows import read_rows
from titan_pt.tasks.task import Problem

logger = logging.getLogger("titan_pt")


@dataclass(frozen=True)
class Entry:
    """One problem as a file holds it, before its options are ordered."""

    id: str
    """Task, file and place in the file, such as "gsm8k/train.jsonl:17"."""
    question: str
    gold: str
    options: tuple[str, ...] = ()
    """Multiple choice: the texts of A, B, ...; `gold` is a letter then."""
    solution: str = ""
    """Worked answer, right by every rule; empty where there is none to show."""


ParseRow = Callable[[Mapping[str, Any], str], Entry]
"""(row, id) -> the problem; raises a ValueError that says what is wrong with the row."""


@dataclass(frozen=True)
class HubSet:
    """A data set of the Hugging Face hub."""

    dataset: str
    subset: str | None
    train: str
    """Split to train on."""
    evaluation: str
    """Split to evaluate on."""


class ProblemSet:
    """A `Problems` of entries, in their order.

    Args:
        ask: (entry, visit) -> problem.
        variant: whatever else decides how entries are asked, such as a seed; part of the fingerprint.
    """

    def __init__(self, entries: Sequence[Entry], ask: Callable[[Entry, int], Problem], variant: str = "") -> None:
        self._entries, self._ask = entries, ask
        digest, solutions = hashlib.sha256(variant.encode()), hashlib.sha256()
        for entry in entries:
            digest.update(json.dumps([entry.question, entry.gold, entry.options]).encode())
            solutions.update(json.dumps(entry.solution).encode())
        self.fingerprint = digest.hexdigest()[:16]
        self.solutions = solutions.hexdigest()[:16] if any(entry.solution for entry in entries) else ""
        """Hash of the worked answers, which the fingerprints in older checkpoints do not have; empty without any."""

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, index: int, visit: int) -> Problem:
        """The problem of entry `index` at its visit-th visit (from 0)."""
        return self._ask(self._entries[index], visit)


def plain_problems(entries: Sequence[Entry], task: str) -> ProblemSet:
    """A problem set whose entries are asked the same way at each visit."""
    return ProblemSet(
        entries, lambda entry, _visit: Problem(task, entry.id, entry.question, entry.gold, entry.solution)
    )


def read_problems(row: GrpoTask, hub: HubSet, parse: ParseRow) -> tuple[list[Entry], list[Entry]]:
    """(training, evaluation) problems that `path`, `eval_path` and `holdout_fraction` of a row describe.

    A question that is in both sets, whatever its blanks and capitals, is taken out of training and counted in the log.
    A row that answers the question of an earlier row of its set otherwise is a bad one.
    An EvaluationTask has no training problems.

    Raises:
        ConfigError: a file or row that cannot be read; no problem is left to train or to evaluate on.
    """
    files = matching_files(row.path) if row.path else []
    eval_files = matching_files(row.eval_path, "eval_path") if row.eval_path else []
    labels = _labels({*files, *eval_files})
    if isinstance(row, EvaluationTask):
        return [], _evaluation(row, eval_files, labels, hub, parse)
    train = _local(row, files, labels, parse) if files else _from_hub(row, hub, hub.train, parse)
    if files and not eval_files:
        return hold_out(train, row.holdout_fraction)
    if row.holdout_fraction != GrpoTask.model_fields["holdout_fraction"].default:
        logger.warning(f"Task {row.name}: holdout_fraction has no effect, for there is a set of its own to evaluate on")
    evaluation = _evaluation(row, eval_files, labels, hub, parse)
    return _without(train, evaluation, row.name), evaluation


def hold_out(entries: Sequence[Entry], fraction: float) -> tuple[list[Entry], list[Entry]]:
    """(training, evaluation) problems, split by a hash of the question (`is_held_out`), in their order.

    Raises:
        ConfigError: one of the two is empty.
    """
    train: list[Entry] = []
    evaluation: list[Entry] = []
    for entry in entries:
        (evaluation if is_held_out(entry.question, fraction) else train).append(entry)
    for part, purpose, change in ((train, "train", "lower"), (evaluation, "evaluate", "raise")):
        if not part:
            raise ConfigError(
                f"holdout_fraction = {fraction:g} leaves none of {len(entries):,} problems to {purpose} on; {change} it"
            )
    return train, evaluation


def text_field(row: Mapping[str, Any], name: str) -> str:
    """The text of a row's field, stripped; a ValueError where there is none."""
    value = field_of(row, name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name!r} is {shown(value)}; want text")
    return checked_text(value, repr(name)).strip()


def field_of(row: Mapping[str, Any], name: str) -> Any:
    """The value of a row's field; a ValueError where there is none."""
    if name not in row:
        raise ValueError(f"no {name!r}; it has {one_of(row)}")
    return row[name]


def _without(train: Sequence[Entry], evaluation: Iterable[Entry], name: str) -> list[Entry]:
    seen = {normalised(entry.question) for entry in evaluation}
    left = [entry for entry in train if normalised(entry.question) not in seen]
    if len(left) < len(train):
        logger.warning(
            f"Task {name}: {len(train) - len(left):,} of {len(train):,} training problems are also evaluated on; "
            "they are taken out of training"
        )
    if not left:
        raise ConfigError("every training problem is also in the set to evaluate on; give another path or eval_path")
    return left


def _evaluation(
    row: GrpoTask, files: Sequence[str], labels: Mapping[str, str], hub: HubSet, parse: ParseRow
) -> list[Entry]:
    return _local(row, files, labels, parse) if files else _from_hub(row, hub, hub.evaluation, parse)


def _local(row: GrpoTask, files: Sequence[str], labels: Mapping[str, str], parse: ParseRow) -> list[Entry]:
    entries: list[Entry] = []
    parse = _OneAnswer(parse)
    for file in files:
        entries += _parsed(row, read_rows(file), file, labels[file], parse)
    if not entries:
        left_out = " beside the rows that are left out" if row.on_bad_row == "skip" else ""
        raise ConfigError(f"{files[0]}: holds no problems{left_out}")
    return entries


class _OneAnswer:
    """A `ParseRow` that also refuses a question, with the same options, that an earlier row answers otherwise."""

    def __init__(self, parse: ParseRow) -> None:
        self._parse = parse
        self._seen: dict[tuple[str, ...], Entry] = {}

    def __call__(self, row: Mapping[str, Any], entry_id: str) -> Entry:
        entry = self._parse(row, entry_id)
        # In whatever order: the text of an option is the answer, not its letter.
        key = normalised(entry.question), *sorted(map(normalised, entry.options))
        first = self._seen.setdefault(key, entry)
        if _answer(first) != _answer(entry):
            raise ValueError(
                f"the question is that of {first.id}, whose answer is {shown(first.gold)}, not {shown(entry.gold)}"
            )
        return entry


def _answer(entry: Entry) -> str | Decimal:
    """What is equal for entries with the same answer, such as 5 and 5.0."""
    if entry.options:
        return normalised(entry.options["ABCDE".index(entry.gold)])
    try:
        return Decimal(entry.gold)
    except InvalidOperation:
        return normalised(entry.gold)


def _parsed(
    task: GrpoTask, rows: Iterable[tuple[str, Mapping[str, Any]]], where: str, label: str, parse: ParseRow
) -> list[Entry]:
    """The problems of a file or split; a bad row is an error, or counted in the log, as task.on_bad_row says."""
    entries: list[Entry] = []
    bad: list[str] = []
    for place, fields in rows:
        try:
            entries.append(parse(fields, f"{task.name}/{label}:{place.removeprefix('line ')}"))
        except ValueError as error:
            bad.append(f"{where}, {place}: {error}")
            if task.on_bad_row == "error":
                raise ConfigError(f'{bad[0]}; repair or remove the row, or set on_bad_row = "skip"') from None
    if bad:
        total = len(bad) + len(entries)
        logger.warning(f"Task {task.name}: {len(bad):,} of {total:,} rows are left out, the first: {bad[0]}")
    return entries


def _labels(files: Iterable[str]) -> dict[str, str]:
    """Short, different names of files: without their folders, or relative to the deepest common one."""
    absolute = {file: os.path.abspath(file) for file in files}
    names = {file: os.path.basename(file) for file in absolute}
    if len(set(names.values())) == len(names):
        return names
    common = os.path.commonpath([os.path.dirname(path) for path in absolute.values()])
    return {file: os.path.relpath(path, common) for file, path in absolute.items()}


def _from_hub(row: GrpoTask, hub: HubSet, split: str, parse: ParseRow) -> list[Entry]:
    where = f"{hub.dataset}{f' ({hub.subset})' if hub.subset else ''}, {split}"
    try:
        rows = list(quiet_datasets().load_dataset(hub.dataset, name=hub.subset, split=split))
    except Exception as error:  # `datasets` and what it calls raise many kinds; the text is what helps
        raise ConfigError(
            f"{where} cannot be had from the hub: {type(error).__name__}: {' '.join(str(error).split())}; "
            'without network give local files, such as path = "train.jsonl" and eval_path = "test.jsonl"'
        ) from error
    located = ((f"row {number}", fields) for number, fields in enumerate(rows))
    return _parsed(row, located, where, split, _OneAnswer(parse))
