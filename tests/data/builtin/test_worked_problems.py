"""Generated word problems: every step and every answer is right, and graded so."""

import ast
import operator
import re
from fractions import Fraction

import pytest
from data_helpers import open_one

from titan_pt.config import ConfigError
from titan_pt.config.schema.job_config import Source
from titan_pt.data.builtin.worked_problems import _KINDS, WorkedProblems
from titan_pt.tasks.grading import grade_gsm8k

STEP = re.compile(r"(?<![\w/.])([-\d(][\d+*/() -]*) = (-?\d+)(?![\d ]*[=x])")


OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def value_of(term: ast.expr) -> Fraction:
    """The exact value of a term of whole numbers."""
    if isinstance(term, ast.BinOp):
        return OPERATIONS[type(term.op)](value_of(term.left), value_of(term.right))
    if isinstance(term, ast.UnaryOp) and isinstance(term.op, ast.USub):
        return -value_of(term.operand)
    assert isinstance(term, ast.Constant) and type(term.value) is int, ast.unparse(term)
    return Fraction(term.value)


def test_every_step_is_right() -> None:
    documents = WorkedProblems(7)
    steps = 0
    kinds = set()
    for i in range(1500):
        document = documents[i]
        assert isinstance(document, str)
        question, _, solution = document.removeprefix("Question: ").partition("\nAnswer: ")
        kinds.add(re.sub(r"[A-Z][a-z]+|\d+|[a-z]{4,}", "", solution)[:9])
        for left, right in STEP.findall(solution):
            steps += 1
            assert value_of(ast.parse(left.strip(), mode="eval").body) == int(right), document
        marked = solution.rpartition("#### ")[2].strip()
        assert grade_gsm8k(solution, marked, "strict") and "-" not in question.replace("= -", "") + marked.lstrip("-")
        last = re.findall(r"= (-?\d+)", solution)[-1]
        assert last == marked, "the last step gives the answer"
    assert steps > 3500 and len(kinds) >= len(_KINDS) // 2
    assert len({documents[i] for i in range(1500)}) > 1450, "hardly one twice"


def test_as_a_source() -> None:
    source = Source(name="worked_problems")
    documents = open_one(source, seed=1, cache_dir=None)
    assert len(documents) == 1_000_000 and documents[3] == WorkedProblems(1)[3] != WorkedProblems(2)[3]
    row = WorkedProblems(1, rows=True)[3]
    assert isinstance(row, dict) and documents[3] == f"Question: {row['question']}\nAnswer: {row['answer']}\n"
    with pytest.raises(ConfigError, match="it has none; leave it out"):
        open_one(Source(name="worked_problems", subset="hard"), seed=1, cache_dir=None)
