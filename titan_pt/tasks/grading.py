"""Grading of completions by several rules for each benchmark, in linear time and without evaluating text as code.

- `official` is the published rule, for accuracies that are reported.
- `strict` is the reward: one answer, in one form, in one place.
- `lenient` finds an answer wherever it stands; only its distance to `strict` is of interest. A rising lenient accuracy
  beside a flat strict one is a problem of format. What is strictly right is leniently right too.
- `flexible_extract`, of numbers, is lm-evaluation-harness's own lenient rule.

A completion is the text before the end-of-turn token: left in, that token stands after the number and makes it wrong.
Only ASCII digits, signs and letters count, in every rule.
"""

import itertools
import re
from collections import deque
from collections.abc import Callable, Mapping
from decimal import Decimal

from titan_pt.tasks.self_check import RULES as RULES

# openai/grade-school-math, grade_school_math/dataset.py, ANS_RE.
_OFFICIAL = re.compile(r"#### (\-?[0-9\.\,]+)")
# EleutherAI/lm-evaluation-harness, tasks/gsm8k/gsm8k.yaml (version 3.0), filter "flexible-extract".
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
# Its regexes_to_ignore.
_IGNORED = tuple(map(re.compile, (",", r"\$", r"(?s).*#### ", r"\.$")))
_MARKER = "####"
_ANSWER = "Answer:"
# Commas only between groups of three, the dollar before or after the sign, one dot of a sentence's end.
_STRICT_NUMBER = re.compile(r"(?:-?\$?|\$-)(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?\.?")
_PLAIN_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")
# Dashes that are written for a minus. Behind a digit they are an operator or a range; "-" counts as in the harness.
_DASHES = "\u2212\u2010\u2011\u2012\u2013\ufe63\uff0d"
_MINUS = re.compile(rf"(?:-|(?<![0-9])[{_DASHES}])$")
_IN_NUMBERS = "$0123456789.,"
# What makes a number a part of another one: the denominator or the exponent.
_PART_BEFORE = re.compile(
    r"(?:[0-9)}]\s{0,2}[/\u2044^]\s{0,2}[({]?|[0-9.][eE][+-]?|\\[dt]?frac\s?\{[^{}]{0,40}\}\s?\{)$"
)
_PART_BEHIND = re.compile(r"\s{0,2}[/\u2044^]\s{0,2}[({]?-?[0-9]|[eE][+-]?[0-9]|[\u00bc-\u00be\u2150-\u215e]")
_NEAR = 64

# A letter that is a whole word: not the C of "Cephalexin", "C-reactive protein" or "C's".
_LETTER = r"([A-E])(?![\w'’-])"
_STRICT_LETTER = re.compile(rf"\s*{_ANSWER}[ \t]*{_LETTER}")
# Every gap is bounded: two unbounded ones side by side take quadratic time on a long run of blanks.
_ANSWER_PHRASE = re.compile(rf"(?ai:answer(?:\s{{1,4}}is)?)\s{{0,4}}:?[\s*(]{{0,8}}{_LETTER}")
_ANSWER_LINE = re.compile(rf"^[ \t]*{_ANSWER}", re.MULTILINE)
_LONE_LETTER = re.compile(rf"(?<![\w'’-]){_LETTER}")


def grade_gsm8k(completion: str, gold: str, rule: str = "official") -> bool:
    r"""Whether the completion answers a GSM8K question (Cobbe et al. 2021, arXiv 2110.14168).

    - `official`: the first match of the published `#### (\-?[0-9\.\,]+)`, commas removed, equal as a string. So
      "#### 18." and "#### 18.0" are wrong.
    - `strict`: exactly one `####`, on the last line that is not blank, and after it nothing but a number: an optional
      sign and `$`, commas only between thousands, decimals, one trailing dot. Equal as decimals, so 18.00 = 18. What
      stands before the marker on its line is free, and so are blanks around the number.
    - `lenient`: the last number in the text, without `,`, `$` and dots behind it, equal as a decimal, so 18.00 = 18.
      A Unicode minus is one. A fraction, a power and 1e3 are no number: "3/4" is neither 3 nor 4.
    - `flexible_extract`: that of lm-evaluation-harness, to compare with its numbers: the last match of its expression,
      equal as a string without `,`, `$` and a last dot. It finds nothing in "72 clips..." and in "$$\\boxed{18}$$", and
      takes U+2212 7 for 7 and "3/4" for 4, which `lenient` does not.

    Args:
        completion: what the model wrote.
        gold: the bare answer ("18", "1,000", "-3") or a text ending in "#### 18".
        rule: "official", "strict", "lenient" or "flexible_extract".

    Raises:
        ValueError: an unknown rule, or a gold answer that is no number.
    """
    extract = _choose(_GSM8K, rule)
    answer, right = extract(completion), gold_number(gold)
    if answer is None:
        return False
    if rule == "flexible_extract":
        return answer == _without_ignored(gold)
    if rule == "official":
        return answer == right
    # Decimals are exact, so no two different answers are equal, however long they are.
    return Decimal(answer) == Decimal(right)


def grade_medqa(completion: str, gold: str, rule: str = "official") -> bool:
    """Whether the completion names the right letter of a MedQA question (Jin et al. 2020, arXiv 2009.13081).

    - `strict`: the last line that is not blank begins with `Answer: X`; the first letter counts, what follows it does
      not: "Answer: C or D" is C. An option's text without its letter is wrong, except that a text's first word may be
      a letter: "Answer: A fracture" is A.
    - `official`: the same. No rule was published with the data for sampled text.
    - `lenient`: the strict letter; else that of the last "answer is X", "Answer: (X)" or the like in any line; else the
      last letter that stands alone.

    Args:
        completion: what the model wrote.
        gold: the letter, A to E, or a text ending in "#### C".
        rule: "official", "strict" or "lenient".

    Raises:
        ValueError: an unknown rule, or a gold answer that is no such letter.
    """
    extract = _choose(_MEDQA, rule)
    right = _bare(gold)
    if re.fullmatch("[A-E]", right) is None:
        raise ValueError(f"gold = {_shown(gold)}: want one letter from A to E, or a text ending in '#### C'")
    return extract(completion) == right


def find_number(completion: str) -> str | None:
    """The answer of a completion in the strict form of `grade_gsm8k`, right or wrong, for Decimal; else None."""
    before, marker, after = completion.rstrip().rpartition(_MARKER)
    # The last of five # is before the marker too. A number on the next line keeps its line end, and does not match.
    if not marker or _MARKER in before or before.endswith("#"):
        return None
    number = after.lstrip(" \t")
    return _digits(number) if _STRICT_NUMBER.fullmatch(number) else None


def find_letter(completion: str) -> str | None:
    """The letter that a completion answers in the strict form of `grade_medqa`, right or wrong; else None."""
    match = _STRICT_LETTER.match(completion.rstrip().rpartition("\n")[2])
    return match[1] if match else None


def find_text(completion: str, rule: str = "strict") -> str | None:
    """The answer of a completion to a problem whose answer is a text, stripped; None where there is none.

    - `strict`, `official`: exactly one line begins with `Answer:`; the answer is all that follows, as it may be a grid
      of several lines.
    - `lenient`: the strict one; else what follows the last `Answer:` or `####` anywhere; else the last line that is not
      blank.

    Raises:
        ValueError: an unknown rule.
    """
    return _choose(_TEXT, rule)(completion) or None


def gold_number(gold: str) -> str:
    """The gold answer of a GSM8K problem without commas, as the published rule compares it.

    Raises:
        ValueError: it is no number.
    """
    number = _bare(gold)
    if _STRICT_NUMBER.fullmatch(number) is None or "$" in number or number.endswith("."):
        raise ValueError(f"gold = {_shown(gold)}: want a number such as '1,000', or a text ending in '#### 1,000'")
    return number.replace(",", "")


def _official_number(completion: str) -> str | None:
    match = _OFFICIAL.search(completion)
    return match[1].replace(",", "") if match else None


def _lenient_number(completion: str) -> str | None:
    last = max(map(completion.rfind, "0123456789"))
    if last < 0:
        return None
    start = len(completion[: last + 1].rstrip(_IN_NUMBERS))
    end = last + 1 + len(completion[last + 1 :]) - len(completion[last + 1 :].lstrip(_IN_NUMBERS))
    before = completion[max(0, start - _NEAR) : start]
    negative = _MINUS.search(before)
    if _PART_BEFORE.search(before.removesuffix(negative[0]) if negative else before):
        return None
    if _PART_BEHIND.match(completion[end : end + _NEAR]):
        return None
    digits = completion[start:end].replace(",", "").replace("$", "").rstrip(".")
    if digits.startswith(".."):
        digits = digits.lstrip(".")  # an ellipsis
    elif digits.startswith("."):
        digits = digits[1:] if before[-1:].isalpha() else f"0{digits}"  # the dot of "No.5", and .5
    number = f"-{digits}" if negative else digits
    return number if _PLAIN_NUMBER.fullmatch(number) else None


def _flexible_number(completion: str) -> str | None:
    match = _last(_FLEXIBLE, completion)
    return _without_ignored(match) if match else None


def _without_ignored(text: str) -> str:
    """A text as the harness's exact_match compares it."""
    for ignored in _IGNORED:
        text = ignored.sub("", text)
    return text.lower()


def _lenient_letter(completion: str) -> str | None:
    return find_letter(completion) or _last(_ANSWER_PHRASE, completion, 1) or _last(_LONE_LETTER, completion, 1)


def _strict_text(completion: str) -> str | None:
    matches = list(itertools.islice(_ANSWER_LINE.finditer(completion), 2))
    return completion[matches[0].end() :].strip() if len(matches) == 1 else None


def _lenient_text(completion: str) -> str | None:
    after = completion.rpartition(_ANSWER)[2].rpartition(_MARKER)[2]
    found = after if after != completion else completion.rstrip().rpartition("\n")[2]
    return _strict_text(completion) or found.strip()


def _last(pattern: re.Pattern[str], text: str, group: int = 0) -> str | None:
    # A queue of one: a list of all matches in a megabyte would fill memory.
    matches = deque(pattern.finditer(text), maxlen=1)
    return matches[0][group] if matches else None


_GSM8K = {
    "official": _official_number,
    "strict": find_number,
    "lenient": _lenient_number,
    "flexible_extract": _flexible_number,
}
_MEDQA = {"official": find_letter, "strict": find_letter, "lenient": _lenient_letter}
_TEXT = {"official": _strict_text, "strict": _strict_text, "lenient": _lenient_text}


def _choose(extractors: Mapping[str, Callable[[str], str | None]], rule: str) -> Callable[[str], str | None]:
    if rule not in extractors:
        raise ValueError(f"rule = {rule!r}: allowed are {', '.join(extractors)}")
    return extractors[rule]


def _bare(gold: str) -> str:
    return gold.rpartition(_MARKER)[2].strip()


def _digits(number: str) -> str:
    """A number for Decimal: without commas, dollars and one trailing dot."""
    return number.replace(",", "").replace("$", "").removesuffix(".")


def _shown(gold: str) -> str:
    """The last characters of a gold answer, for an error message."""
    return repr(gold if len(gold) <= 80 else "..." + gold[-77:])
