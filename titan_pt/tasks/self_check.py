"""The check of a task's own grading at its opening: worked answers are right, and nonsense is wrong.

A reward is only as good as its grading. A scorer that takes "I do not know" for right teaches that, and a row whose
own answer is graded wrong teaches nothing or the opposite.
"""

import contextlib
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from titan_pt.tasks.time_limit import TimeLimit, TimeLimitExpired

RULES = ("official", "strict", "lenient")

NONSENSE = ("", "nan", "?", "I do not know")
"""Replies that answer nothing, whatever was asked."""

_REWARDED = ("strict", "official")  # a lenient verdict is no reward and no accuracy to report
_FORMS = ("{}", "Answer: {}", "#### {}")
# Problems that are asked for nonsense; a scorer that accepts it mostly does so for every problem.
_PROBLEMS = 40
# Worked answers that are graded at opening: a registered set may be endless. Rows of files are graded as they are read.
_MOST = 20_000
# A grading that runs programs may take long: the check ends then, and says how far it came.
_ALL_SECONDS = 60.0

Grade = Callable[[str, Any, str], bool]
"""(completion, problem, rule) -> whether it is right."""


class Asked(Protocol):
    """A problem, as far as it is checked."""

    @property
    def id(self) -> str: ...
    @property
    def question(self) -> str: ...
    @property
    def gold(self) -> str: ...
    @property
    def solution(self) -> str: ...


class CheckedProblems(Protocol):
    """A set of problems, as far as it is checked."""

    def __len__(self) -> int: ...
    def get(self, index: int, visit: int) -> Asked: ...


def proved(solution: str, gold: str, grade: Callable[[str, str, str], bool]) -> str:
    """The worked answer of a row, which is right by every rule.

    Args:
        grade: (completion, gold, rule) -> whether it is right.

    Raises:
        ValueError: it is not.
    """
    wrong = [rule for rule in RULES if not grade(solution, gold, rule)]
    if wrong:
        raise ValueError(_unproved(solution, wrong))
    return solution


@dataclass(frozen=True)
class Proof:
    """What a check of worked answers found."""

    wrong: dict[int, str]
    """Problems whose worked answers are not right by every rule: number -> what is wrong."""
    read: int
    """Problems that were read, from the first on."""
    checked: int
    """Problems that have a worked answer, among them."""


def prove(problems: CheckedProblems, grade: Grade) -> Proof:
    """Grade the worked answers of the first problems by every rule, for a minute at most."""
    wrong: dict[int, str] = {}
    read = checked = 0
    verdicts = _Verdicts(grade)

    def check() -> None:
        nonlocal read, checked
        for index in range(min(len(problems), _MOST)):
            problem = problems.get(index, 0)
            rules = RULES if problem.solution else ()
            broken = [rule for rule in rules if not verdicts.ask(problem.solution, problem, rule)]
            if broken:
                wrong[index] = f"{problem.id}: {_unproved(problem.solution, broken)}{verdicts.why_none()}"
            read, checked = index + 1, checked + bool(rules)

    with contextlib.suppress(TimeLimitExpired), TimeLimit(_ALL_SECONDS) as limit:
        limit.run(check)  # one limit for all: one for each would take longer than the grading
    return Proof(wrong, read, checked)


def accepted_nonsense(
    problems: CheckedProblems, grade: Grade, find_answer: Callable[[str], str | None] | None
) -> str | None:
    """What is wrong with a grading that takes nonsense for right or gives no verdict at all; None: nothing is.

    Each problem gets replies that answer nothing, the answer to another problem, its own question and, where the
    answer is a number, its negative and 0. A reply that happens to be the right answer does not count, and as other
    answers may be right too, all but the first are refused only where more than half of the problems take them.

    Args:
        find_answer: as of `Task`; where it finds an answer, nonsense is also given in the strict form.
    """
    chosen = range(0, len(problems), max(1, len(problems) // _PROBLEMS))[:_PROBLEMS]
    some = [problems.get(index, 0) for index in chosen]
    taken: dict[str, list[str]] = {}
    asked = 0
    verdicts = _Verdicts(grade)

    def check() -> None:
        nonlocal asked
        for i, problem in enumerate(some):
            asked = i + 1
            if not verdicts.given:  # it may raise for what is no answer, but not for everything
                for answer in filter(None, (problem.solution, *_in_forms(problem.gold, find_answer))):
                    verdicts.ask(answer, problem, _REWARDED[0])
            for kind, reply in _replies(problem, some[(i + 1) % len(some)]):
                forms = _in_forms(reply, find_answer)
                right = [f for f in forms if any(verdicts.ask(f, problem, rule) for rule in _REWARDED)]
                if right:
                    taken.setdefault(kind, []).append(f"{problem.id}: {right[0][:200]!r}")

    with contextlib.suppress(TimeLimitExpired), TimeLimit(_ALL_SECONDS) as limit:
        limit.run(check)
    if asked and not verdicts.given:
        why = verdicts.why_none() or f": it took longer than {_ALL_SECONDS:g} s"
        return f"its grading gives no verdict{why}; repair it"
    for kind, examples in taken.items():
        if kind in NONSENSE or len(examples) > asked / 2:
            what = repr(kind) if kind in NONSENSE else kind
            return (
                f"its grading takes {what} for right {len(examples)} of {asked} times, as of {examples[0]}; rewards "
                "would teach it: choose another task, or mend its grading"
            )
    return None


def _replies(problem: Asked, other: Asked) -> Iterator[tuple[str, str]]:
    """(kind, reply) of replies that are not right."""
    replies = ((reply, reply) for reply in NONSENSE)
    others = [("the answer to another problem", other.gold), ("the question itself", problem.question)]
    if re.fullmatch("-?[0-9]+([.][0-9]+)?", problem.gold):
        wrong = problem.gold.removeprefix("-") if problem.gold.startswith("-") else f"-{problem.gold}"
        others += [("the negated answer", wrong)] if float(wrong) else []
        others += [("0", "0")] if float(wrong) else []
    for kind, reply in itertools.chain(replies, others):
        if _plain(reply) != _plain(problem.gold) and (reply or kind == ""):
            yield kind, reply


def _in_forms(reply: str, find_answer: Callable[[str], str | None] | None) -> Iterator[str]:
    for form in _FORMS:
        completion = form.format(reply) if form != "{}" else reply
        if form == "{}" or (find_answer is not None and find_answer(completion) is not None):
            yield completion


@dataclass
class _Verdicts:
    """Verdicts of a user's grading, which may raise; in training that counts as wrong."""

    grade: Grade
    given: int = 0
    failures: list[str] = field(default_factory=list)

    def ask(self, completion: str, problem: Asked, rule: str) -> bool:
        """Whether a completion is right; not where the grading raises."""
        try:
            verdict = bool(self.grade(completion, problem, rule))
        except (KeyboardInterrupt, TimeLimitExpired):
            raise
        except BaseException as error:
            what = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200].removesuffix(": ")
            self.failures.append(f"for the reply {completion[:80]!r} to {problem.id}: {what}")
            return False
        self.given += 1
        return verdict

    def why_none(self) -> str:
        """What follows "gives no verdict" where each of the calls raised; else nothing."""
        if self.given or not self.failures:
            return ""
        return f": each of {len(self.failures)} calls raised, the first {self.failures[0]}"


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _unproved(solution: str, wrong: Sequence[str]) -> str:
    shown = solution if len(solution) <= 80 else "..." + solution[-77:]
    return f"its own worked answer {shown!r} is wrong by the rule {', '.join(wrong)}"
