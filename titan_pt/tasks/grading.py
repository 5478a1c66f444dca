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
_MARKER = "####"
_ANSWER = "Answer:"
# Commas only between groups of three, the dollar before or after the sign, one dot of a sentence's end.
_STRICT_NUMBER = re.compile(r"(?:-?\$?|\$-)(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?\.?")
_PLAIN_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")
# Blanks and other signs that stand between thousands; in LaTeX also a comma in braces, and thin spaces.
_BETWEEN = r"(?:\{,\}|,?\\[,!;: ]|[ \u00a0\u2009\u202f_'’])"
_THOUSANDS = re.compile(rf"(?<![0-9.,])[1-9][0-9]{{0,2}}(?:{_BETWEEN}[0-9]{{3}})+(?![0-9])")
# Dashes that are written for a minus. Behind a digit they are an operator or a range; "-" counts as in the harness.
_DASHES = "\u2212\u2010\u2011\u2012\u2013\ufe63\uff0d"
# What stands between a sign and its number: currencies, brackets, emphasis, the name of a font.
_OPEN = r"(?:[€£¥$(\[{}*_]|\\[,;:! ]|\\[a-z]{1,12}\{)"
# A minus that is apart from its number is one where an answer begins: "10 - 5" and "x minus 5" are differences.
_BEGINS = r"(?:^|[=≈→:,;|#][ \t]{0,2}|[({\[$*_]|(?ai:\b(?:is|are|was|were|be|to|of|at|by|equals?)\s{1,2}))"
_MINUS = re.compile(
    rf"(?:(?P<tight>-|(?<![0-9])[{_DASHES}])"
    rf"|(?<![0-9)}}\]])(?P<open>[-{_DASHES}]{_OPEN}{{1,3}}\s?)"
    rf"|{_BEGINS}(?P<apart>(?:[-\u2212\ufe63\uff0d]\s|(?ai:minus)\s{{1,2}}){_OPEN}{{0,3}})"
    rf"|\n\s{{0,4}}(?P<line>(?:[\u2212\ufe63\uff0d]\s|(?ai:minus)\s{{1,2}}){_OPEN}{{0,3}})"
    rf"|(?<![\w-])(?P<word>(?ai:negative)\s{{1,2}}{_OPEN}{{0,3}}))$"
)
_IN_NUMBERS = "$0123456789.,"
# What makes a number a part of another one: the denominator, the exponent or the radicand.
_SLASH = "/\u2044\u2215\uff0f\u00f7"
_INSIDE = r"(?:[^{}]|\{[^{}]{0,40}\}){0,80}"
_PART_BEFORE = re.compile(
    rf"(?:[0-9)}}]\s{{0,2}}[{_SLASH}]\s{{0,2}}[({{]?|[\w)}}]\s{{0,2}}\^\s{{0,2}}[({{]?"
    rf"|[0-9a-z)]\*\*[({{]?|[0-9a-z)]\s\*\*\s[({{]?|[0-9.][eE][+-]?"
    rf"|\\(?:[cdts]|nice)?frac\s{{0,2}}(?:(?:\{{{_INSIDE}\}}|[0-9A-Za-z])\s{{0,2}})?(?:\{{[^{{}}]{{0,40}})?"
    rf"|\\over\s{{0,2}}|\\sqrt\s{{0,2}}(?:\[[^\]]{{0,9}}\]?)?(?:\{{[^{{}}]{{0,40}})?|\u221a\s?[({{]?)$"
)
# Nothing behind the last number has a digit in it.
_PART_BEHIND = re.compile(r"\s?[\u00bc-\u00be\u2150-\u215e]")
_PART_SIGNS = frozenset(f"{_SLASH}^*eE\\\u221a")
_NEAR, _NEAR_SIGN = 128, 40

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
      Blanks and LaTeX's `{,}` may stand between thousands: "5 100" is one number. A Unicode minus is one, and so are
      "minus" and a minus apart from its number where an answer begins: "is - 5", but not "10 - 5" and "Total - 5". A
      fraction, a power, a root and 1e3 are no number: "3/4" is neither 3 nor 4.
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
    completion = _THOUSANDS.sub(_without_blanks, completion.replace("\\$", "$"))
    last = max(map(completion.rfind, "0123456789"))
    if last < 0:
        return None
    start = len(completion[: last + 1].rstrip(_IN_NUMBERS))
    end = last + 1 + len(completion[last + 1 :]) - len(completion[last + 1 :].lstrip(_IN_NUMBERS))
    negative = _MINUS.search(completion, max(0, start - _NEAR_SIGN), start)
    sign = negative.start(negative.lastgroup or 0) if negative else start
    before = completion[max(0, sign - _NEAR) : sign]
    if not _PART_SIGNS.isdisjoint(before) and _PART_BEFORE.search(before):
        return None
    if _PART_BEHIND.match(completion[end : end + _NEAR]):
        return None
    digits = completion[start:end].replace(",", "").replace("$", "").rstrip(".")
    if digits.startswith(".."):
        digits = digits.lstrip(".")  # an ellipsis
    elif digits.startswith("."):
        digits = digits[1:] if completion[start - 1 : start].isalpha() else f"0{digits}"  # the dot of "No.5", and .5
    number = f"-{digits}" if negative else digits
    return number if _PLAIN_NUMBER.fullmatch(number) else None


def _without_blanks(number: re.Match[str]) -> str:
    return "".join(filter(str.isdecimal, number[0]))


def _flexible_number(completion: str) -> str | None:
    match = _last(_FLEXIBLE, completion)
    return _without_ignored(match) if match else None


def _without_ignored(text: str) -> str:
    """A text as the harness's exact_match compares it: without its regexes_to_ignore ,  $  (?s).*####_  and \\.$ ."""
    # Not by its third expression, which takes quadratic time where there is no marker.
    return text.replace(",", "").replace("$", "").rpartition("#### ")[2].removesuffix(".").lower()


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
