"""Questions with answers: how they are asked, and which of them nothing may train on."""

from titan_pt.config.schema.grpo import GrpoTask
from titan_pt.data.permutation import keyed_hash

QUESTION_ANSWER = "Question: {question}\nAnswer:"
"""Prompt of a question whose task has no prompt of its own."""

HOLDOUT_FRACTION: float = GrpoTask.model_fields["holdout_fraction"].default
"""Share of a generated set of questions that is only evaluated on, unless a task sets another."""

_HOLDOUT_KEY = b"titan_pt held-out problems"


def is_held_out(question: str, fraction: float) -> bool:
    """Whether a question belongs to the share that is only evaluated on.

    It depends on the normalised question alone, on no seed and no order: what one run evaluates on, no other trains on.
    """
    return keyed_hash(_HOLDOUT_KEY, normalised(question).encode()) < fraction * 2**64


def normalised(question: str) -> str:
    """Question in lower case, with single blanks: equal for questions that differ in nothing else."""
    return " ".join(question.split()).casefold()
