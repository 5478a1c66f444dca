"""Generated lists to sort, and as a source: none that the task only evaluates on, as texts and as records."""

import pytest
from data_helpers import open_one

from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.job_config import Source
from titan_pt.data.builtin.questions import HOLDOUT_FRACTION, is_held_out
from titan_pt.data.builtin.sorting import LEVELS, SortedLists, num_lists, sorting_problem


def test_a_level_has_every_list_once() -> None:
    assert [num_lists(level) for level in LEVELS] == [10**4, 10**6, 10**8]
    assert len({sorting_problem(1, index).question for index in range(10**4)}) == 10**4
    made = sorting_problem(2, 40310)
    assert (made.question, made.answer) == ("Sort 0 4 0 3 1 0.", "0 0 0 1 3 4")
    with pytest.raises(IndexError):
        sorting_problem(1, 10**4)


def test_no_list_that_is_only_evaluated_on_is_read() -> None:
    lists = SortedLists(1)
    questions = {lists[index].splitlines()[0].removeprefix("Question: ") for index in range(len(lists))}
    assert 8_800 < len(questions) < 9_200
    assert not any(is_held_out(question, HOLDOUT_FRACTION) for question in questions)


def test_texts_and_records_say_the_same() -> None:
    text, record = SortedLists(2)[123456], SortedLists(2, rows=True)[123456]
    assert text == "Question: Sort 1 2 3 4 5 6.\nAnswer: 1 2 3 4 5 6\n"
    assert record == {"prompt": "Question: Sort 1 2 3 4 5 6.\nAnswer:", "completion": " 1 2 3 4 5 6"}


@pytest.mark.parametrize("subset", [None, "level-9", "6"])
def test_wrong_levels_are_named(subset: str | None) -> None:
    with pytest.raises(ConfigError, match='want one of "level-1" \\(lists of 4 digits\\); "level-2"'):
        open_one(Source(name="sorting", subset=subset), seed=0, cache_dir=None)
