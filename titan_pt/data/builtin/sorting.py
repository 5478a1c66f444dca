"""Generated lists of digits to sort, in levels of length: finite, numbered, always the same. No torch here."""

from dataclasses import dataclass

from titan_pt.data.builtin.questions import HOLDOUT_FRACTION, QUESTION_ANSWER, is_held_out

_LENGTHS = {1: 4, 2: 6, 3: 8}

LEVELS: dict[int, str] = {level: f"lists of {length} digits" for level, length in _LENGTHS.items()}
"""Description of each level's lists, by its number; 1 is the easiest."""


@dataclass(frozen=True)
class SortingProblem:
    """One list, and the same in order."""

    question: str
    """Question text, such as "Sort 4 1 3 1."."""
    answer: str
    """The digits in ascending order, such as "1 1 3 4"."""


def num_lists(level: int) -> int:
    """Number of different lists of a level."""
    return 10 ** _LENGTHS[level]


def sorting_problem(level: int, index: int) -> SortingProblem:
    """Problem `index` of a level, from 0 to below `num_lists(level)`; no two are the same.

    Raises:
        IndexError: no such problem.
    """
    if not 0 <= index < num_lists(level):
        raise IndexError(index)
    digits = f"{index:0{_LENGTHS[level]}}"
    return SortingProblem(f"Sort {' '.join(digits)}.", " ".join(sorted(digits)))


class SortedLists:
    """All lists of a level with their answers; the next one stands in for one that is only evaluated on.

    Args:
        rows: give records of a prompt and a completion instead of texts.
    """

    generated = True

    def __init__(self, level: int, *, rows: bool = False) -> None:
        self._level, self._rows = level, rows
        self.fingerprint = f"sorting-1-level-{level}"

    def __len__(self) -> int:
        return num_lists(self._level)

    def __getitem__(self, index: int) -> str | dict[str, str]:
        made = sorting_problem(self._level, index)
        while is_held_out(made.question, HOLDOUT_FRACTION):
            index = (index + 1) % len(self)
            made = sorting_problem(self._level, index)
        prompt = QUESTION_ANSWER.replace("{question}", made.question)
        return {"prompt": prompt, "completion": f" {made.answer}"} if self._rows else f"{prompt} {made.answer}\n"
