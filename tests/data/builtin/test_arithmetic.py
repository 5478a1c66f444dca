"""The generated problems: levels, their documents, and the source that reads them."""

import pytest
from data_helpers import open_one

from titan_pt.config import ConfigError
from titan_pt.config.schema.job_config import Source
from titan_pt.data.builtin.arithmetic import LEVELS, num_problems, problem
from titan_pt.tasks.grading import grade_gsm8k

OPERATIONS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}


@pytest.mark.parametrize("level", LEVELS)
def test_every_problem_is_there_once_and_right(level: int) -> None:
    size = num_problems(level)
    numbers = range(size) if size <= 2000 else range(0, size, size // 997)
    found = [problem(level, number) for number in numbers]
    assert len({made.question for made in found}) == len(found)
    for made in found:
        a, operation, b = made.question.removeprefix("What is ").removesuffix("?").split()
        assert made.answer == str(OPERATIONS[operation](int(a), int(b)))
        assert grade_gsm8k(" " + made.solution, made.answer, "strict")
        assert made.document == f"Question: {made.question}\nAnswer: {made.solution}\n"
        assert "####" not in made.plain_document and made.document.startswith(made.plain_document)
        assert not grade_gsm8k(made.plain_document, made.answer, "strict"), "right, and not in the form"
    with pytest.raises(IndexError):
        problem(level, size)


def test_levels_get_harder() -> None:
    sizes = [num_problems(level) for level in LEVELS]
    assert sizes == sorted(sizes) and list(LEVELS) == [1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="level = 6"):
        problem(6, 0)


@pytest.mark.parametrize(("name", "marker"), [("arithmetic", True), ("arithmetic_plain", False)])
def test_a_level_as_a_source(name: str, marker: bool) -> None:
    documents = open_one(Source(name=name, subset="level-1"), seed=0, cache_dir=None)
    assert len(documents) == 100
    assert all(("####" in documents[i]) == marker for i in range(100))
    other = open_one(Source(name=name, subset="level-2"), seed=0, cache_dir=None)
    assert other.fingerprint != documents.fingerprint


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "arithmetic", "subset": "level-9"}, r'subset = \'level-9\': unknown; allowed are "level-1"'),
        ({"name": "arithmetic_plain", "subset": "9"}, "want one of level-1, level-2"),
        ({"name": "arithmetic_plain"}, "want one of level-1, level-2"),
        ({"name": "python_stdlib", "subset": "level-1"}, "it has none"),
    ],
)
def test_wrong_subsets(fields: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_one(Source(**fields), seed=0, cache_dir=None)
