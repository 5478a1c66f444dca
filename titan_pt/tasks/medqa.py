"""MedQA-USMLE: medical questions of multiple choice (Jin et al. 2020, arXiv 2009.13081)."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from titan_pt.config.errors import ConfigError, one_of, shown
from titan_pt.config.schema.grpo import GrpoTask
from titan_pt.data.builtin.questions import normalised
from titan_pt.data.permutation import keyed_hash
from titan_pt.tasks.grading import find_letter, grade_medqa
from titan_pt.tasks.problems import Entry, HubSet, ProblemSet, field_of, read_problems, text_field
from titan_pt.tasks.task import Problem, Task, refuse_unused, worked_example

# The `test` split stays untouched for the reported accuracy.
_HUB = HubSet("GBaker/MedQA-USMLE-4-options-hf", None, train="train", evaluation="validation")
_LETTERS = "ABCDE"
_FORMS = str.maketrans(
    dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d", "-")
    | dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u0060\u00b4", "'")
    | dict.fromkeys("\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb", '"')
)
_TEMPLATE = "Question: {question}\n"


def build(row: GrpoTask, seed: int) -> Task:
    """The MedQA task: a question with a line for each option, whose right completion ends in a line "Answer: C".

    In training the options have another order at each visit, so that no letter can be memorised; in
    evaluation in the order of the file. Local files have the fields `question`, `options` (letter -> text) and
    `answer_idx` (a letter), or those of the hub's set: `sent1`, `sent2`, `ending0`, `ending1`, ... and `label`.
    """
    refuse_unused(row, "path", "eval_path", "holdout_fraction", "shuffle_options")
    train, evaluation = read_problems(row, _HUB, _parse)
    letters = _common_letters([*train, *evaluation])

    def shuffled(entry: Entry, visit: int) -> Problem:
        return _ask(row.name, entry, _order(len(letters), f"{seed}/{entry.id}/{visit}"))

    def unshuffled(entry: Entry, _visit: int) -> Problem:
        return _ask(row.name, entry, range(len(letters)))

    def answered(completion: str) -> str | None:
        letter = find_letter(completion)
        return letter if letter in letters else None

    return Task(
        name=row.name,
        train=ProblemSet(train, shuffled, f"{seed}") if row.shuffle_options else ProblemSet(train, unshuffled),
        evaluation=ProblemSet(evaluation, unshuffled),
        grade=lambda completion, problem, rule: grade_medqa(completion, problem.gold, rule),
        template=_TEMPLATE,
        find_answer=answered,
        letters=letters,
        letter_prefix="Answer:",
        find_letter=answered,
    )


def example(row: Mapping[str, Any]) -> tuple[str, str]:
    """(prompt, right answer) of a row of MedQA, its options in the order of the file.

    Raises:
        ValueError: the row lacks a field or has other options than A, B, ...
    """
    entry = _parse(row, "row")
    return worked_example(_TEMPLATE, _ask("medqa", entry, range(len(entry.options))))


def _ask(task: str, entry: Entry, order: Sequence[int]) -> Problem:
    """The problem of an entry, with its options in the order of these numbers."""
    lines = [f"{letter}. {entry.options[number]}" for letter, number in zip(_LETTERS, order, strict=False)]
    gold = _LETTERS[order.index(_LETTERS.index(entry.gold))]
    return Problem(task, entry.id, "\n".join([entry.question, *lines]), gold, f"Answer: {gold}")


def _order(size: int, text: str) -> list[int]:
    """A random order of range(size) that depends on the text alone."""
    return sorted(range(size), key=lambda number: keyed_hash(b"options", f"{text}/{number}".encode()))


def _common_letters(entries: Sequence[Entry]) -> tuple[str, ...]:
    for entry in entries:
        if len(entry.options) != len(entries[0].options):
            raise ConfigError(
                f"{entries[0].id} has {len(entries[0].options)} options and {entry.id} has {len(entry.options)}; "
                "all questions of a task need the same number, so make two tasks of them"
            )
    return tuple(_LETTERS[: len(entries[0].options)])


def _parse(row: Mapping[str, Any], entry_id: str) -> Entry:
    if "ending0" in row:
        texts = _numbered_options(row)
        question = text_field(row, "sent1")
        if row.get("sent2"):
            question += " " + text_field(row, "sent2")
        label = field_of(row, "label")
        if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < len(texts):
            raise ValueError(f"'label' is {shown(label)}; want the number of an option, 0 to {len(texts) - 1}")
        gold = _LETTERS[label]
        letter_key = "label"
    else:
        question, texts = text_field(row, "question"), _lettered_options(row)
        gold = field_of(row, "answer_idx")
        if gold not in list(_LETTERS[: len(texts)]):
            raise ValueError(f"'answer_idx' is {shown(gold)}; want one of {one_of(_LETTERS[: len(texts)])}")
        letter_key = "answer_idx"
    _check_answer(row.get("answer"), texts, gold, letter_key)
    _check_different(texts, gold)
    # One line each, so that the letters stand at the beginnings of lines.
    return Entry(entry_id, question, gold, tuple(" ".join(text.split()) for text in texts))


def _check_answer(answer: Any, texts: Sequence[str], gold: str, letter_key: str) -> None:
    """Raise a ValueError unless the text of the answer, where the row has one, is the option of its letter."""
    text = texts[_LETTERS.index(gold)]
    if answer is not None and answer != gold and (not isinstance(answer, str) or _same(answer) != _same(text)):
        raise ValueError(f"'answer' is {shown(answer)}, and the option of {letter_key} {gold} is {shown(text)}")


def _check_different(texts: Sequence[str], gold: str) -> None:
    """Raise a ValueError where the right option stands under another letter too."""
    right = _same(texts[_LETTERS.index(gold)])
    letters = [letter for letter, text in zip(_LETTERS, texts, strict=False) if _same(text) == right]
    if len(letters) > 1:
        raise ValueError(f"the options {' and '.join(letters)} are the same text, and only {gold} would be right")


def _same(text: str) -> str:
    """The text of an option without what does not make it another one.

    That is blanks, capitals, the forms of a letter, a dash and a quote, quotes around it, and punctuation behind it.
    """
    # An exponent is no digit: 10\u00b2 is not 102.
    text = "".join(f"^{sign}" if unicodedata.decomposition(sign).startswith("<super>") else sign for sign in text)
    text = unicodedata.normalize("NFKC", text.translate(_FORMS))
    text = normalised("".join(sign for sign in text if unicodedata.category(sign) != "Cf"))
    while True:
        less = text.rstrip(".,;:!? ")
        if len(less) > 2 and less[0] + less[-1] in ("''", '""', "()", "[]", "**"):
            less = less[1:-1].strip()
        if less in ("", text):
            return text
        text = less


def _numbered_options(row: Mapping[str, Any]) -> list[str]:
    names = sorted(name for name in row if re.fullmatch("ending[0-9]", name) and row[name] is not None)
    if names != [f"ending{number}" for number in range(len(names))] or not 2 <= len(names) <= len(_LETTERS):
        raise ValueError(f"the options are {one_of(names)}; want ending0, ending1 and so on, two to five")
    return [text_field(row, name) for name in names]


def _lettered_options(row: Mapping[str, Any]) -> list[str]:
    options = field_of(row, "options")
    if not isinstance(options, dict):
        raise ValueError(f"'options' is {shown(options)}; want an object of texts under A, B and so on")
    # A table of questions with four and five options holds a null for E.
    given = {letter: text for letter, text in options.items() if text is not None}
    if "".join(sorted(given)) != _LETTERS[: len(given)] or len(given) < 2:
        raise ValueError(f"'options' has {one_of(given)}; want A, B and so on, two to five")
    return [text_field(given, letter) for letter in sorted(given)]
