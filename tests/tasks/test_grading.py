"""Grading: a table of hand-judged completions, properties, hostile lengths, and all real gold answers."""

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from titan_pt.tasks.grading import (
    RULES,
    find_letter,
    find_number,
    find_text,
    gold_number,
    grade_gsm8k,
    grade_medqa,
)

MEGABYTE = 1_000_000

# (completion, gold, official, strict, lenient)
GSM8K = [
    # The form of the data.
    ("2 * 9 = <<2*9=18>>18\n#### 18", "18", True, True, True),
    ("#### 18", "18", True, True, True),
    ("#### 19", "18", False, False, False),
    ("#### 18", "so 9 + 9 = 18\n#### 18", True, True, True),
    ("#### 18", "#### 19", False, False, False),
    ("#### 18", " 18 \n", True, True, True),
    ("so it is #### 18", "18", True, True, True),
    # Blanks.
    ("#### 18\n\n  \n", "18", True, True, True),
    ("#### 18   ", "18", True, True, True),
    ("#### 18\r\n", "18", True, True, True),
    ("   #### 18", "18", True, True, True),
    ("####  18", "18", False, True, True),
    ("####\t18", "18", False, True, True),
    ("####18", "18", False, True, True),
    ("####\n18", "18", False, False, True),
    ("#### 1 8", "18", False, False, False),
    ("#### - 18", "-18", False, False, True),
    # Commas.
    ("#### 1,000", "1000", True, True, True),
    ("#### 1000", "1,000", True, True, True),
    ("#### 1,000", "#### 1,000", True, True, True),
    ("#### 192,000,000", "192000000", True, True, True),
    ("#### 10,00", "1000", True, False, True),
    ("#### 1000,", "1000", True, False, True),
    ("#### ,1000", "1000", True, False, True),
    ("#### 1,0000", "10000", True, False, True),
    ("#### 1,,000", "1000", True, False, True),
    ("#### 0,018", "18", False, False, True),
    ("#### 1,000.50", "1000.5", False, True, True),
    ("#### 1 000", "1000", False, False, True),
    ("#### 1_000", "1000", False, False, True),
    ("#### 1.000", "1000", False, False, False),
    # Signs and dollars.
    ("#### -3", "-3", True, True, True),
    ("#### 3", "-3", False, False, False),
    ("#### -3", "3", False, False, False),
    ("#### +3", "3", False, False, True),
    ("#### --3", "-3", False, False, True),
    ("#### -0", "0", False, True, True),
    ("#### \u22123", "-3", False, False, True),
    ("#### $18", "18", False, True, True),
    ("#### -$18", "-18", False, True, True),
    ("#### $-18", "-18", False, True, True),
    ("#### $1,000.00", "1000", False, True, True),
    ("#### $ 18", "18", False, False, True),
    ("#### $$18", "18", False, False, True),
    ("#### 18$", "18", True, False, True),
    ("#### \\$18", "18", False, False, True),
    # Decimals and the dot of a sentence.
    ("#### 18.", "18", False, True, True),
    ("#### 18.0", "18", False, True, True),
    ("#### 18.00.", "18", False, True, True),
    ("#### 18..", "18", False, False, True),
    ("#### 18.5", "18", False, False, False),
    ("#### 18.50", "18.5", False, True, True),
    ("#### .5", "0.5", False, False, True),
    ("#### 018", "18", False, True, True),
    ("#### 0.1", "0.1000000000000000055511151231257827", False, False, False),
    ("#### 9007199254740993", "9007199254740992", False, False, False),
    ("#### 1e3", "1000", False, False, False),
    ("#### 1.8e1", "18", False, False, False),
    ("#### inf", "18", False, False, False),
    ("#### NaN", "18", False, False, False),
    # Fractions, units, sums.
    ("#### 36/2", "18", False, False, False),
    ("#### 18/1", "18", True, False, False),
    ("#### 9+9", "18", False, False, False),
    ("#### 18%", "18", True, False, True),
    ("#### 18 dollars", "18", True, False, True),
    ("#### 18eggs", "18", True, False, True),
    ("#### **18**", "18", False, False, True),
    ("#### x = 18", "18", False, False, True),
    ("#### __import__('os')", "18", False, False, False),
    # A second number, text after the marker, several markers.
    ("#### 18 19", "18", True, False, False),
    ("#### 19 18", "18", False, False, True),
    ("#### 18 or 19", "18", True, False, False),
    ("#### 18\nThat is all.", "18", True, False, True),
    ("#### 18\nor 19", "18", True, False, False),
    ("#### 18\n#### 18", "18", True, False, True),
    ("#### 18\n#### 19", "18", True, False, False),
    ("#### 19\n#### 18", "18", False, False, True),
    ("#### 18 #### 18", "18", True, False, True),
    ("#### no\n#### 18", "18", True, False, True),
    ("#### 18 ####", "18", True, False, True),
    ("##### 18", "18", True, False, True),
    ("######## 18", "18", True, False, True),
    ("### 18", "18", False, False, True),
    ("# # # # 18", "18", False, False, True),
    ("#### 18<|im_end|>", "18", True, False, True),
    # No marker.
    ("The answer is 18.", "18", False, False, True),
    ("The answer is 18 because 2 * 9.", "18", False, False, False),
    ("It is $1,000.00!", "1000", False, False, True),
    ("18", "18", False, False, True),
    ("8", "8", False, False, True),
    ("eighteen", "18", False, False, False),
    ("18 ... or so, maybe...", "18", False, False, True),
    # Dots and dollars behind the last number, as in prose and LaTeX.
    ("She sold 72 clips...", "72", False, False, True),
    ("It is $72... I think...", "72", False, False, True),
    ("so...72", "72", False, False, True),
    ("See No.72", "72", False, False, True),
    ("$$\\boxed{18}$$", "18", False, False, True),
    ("\\[\\boxed{1,018}\\].", "1018", False, False, True),
    ("\\boxed{\\$18.00}$.", "18", False, False, True),
    # Other minuses; behind a digit they are a range.
    ("It is \u22127", "7", False, False, False),
    ("It is \u22127", "-7", False, False, True),
    ("It is \u2212$7.", "-7", False, False, True),
    ("It is \u20137", "-7", False, False, True),
    ("It is \uff0d7", "7", False, False, False),
    ("pages 3\u20137", "7", False, False, True),
    # A part of a number is not the number.
    ("It is 3/4", "4", False, False, False),
    ("It is 3/4", "3", False, False, False),
    ("It is 3 / 4 of it", "4", False, False, False),
    ("It is 3\u20444", "4", False, False, False),
    ("It is $\\frac{3}{4}$", "4", False, False, False),
    ("It is \\dfrac{x + 3}{4}.", "4", False, False, False),
    ("It is 3\u00bd", "3", False, False, False),
    ("It is 2^4", "4", False, False, False),
    ("It is 2^{4}", "4", False, False, False),
    ("It is 3e4", "4", False, False, False),
    ("It is $3 \u2215 4$", "4", False, False, False),
    ("It is \\cfrac{3}{4}", "4", False, False, False),
    ("It is \\frac34", "34", False, False, False),
    ("It is \\frac 3 4", "4", False, False, False),
    ("It is \\frac{3}4", "4", False, False, False),
    ("It is \\frac3{4}", "4", False, False, False),
    ("It is -\\frac{\\sqrt{2}}{3}", "3", False, False, False),
    ("It is \\frac{x}{2 \\cdot 3}", "3", False, False, False),
    ("It is {3 \\over 4}", "4", False, False, False),
    ("It is \\sqrt{5}", "5", False, False, False),
    ("It is x^2", "2", False, False, False),
    ("It is 10**3", "3", False, False, False),
    ("It is 10 ** 3", "3", False, False, False),
    ("**Total (in $)** 5", "5", False, False, True),
    ("3/4 of 72 are 54", "54", False, False, True),
    ("$\\frac{3}{4} \\cdot 72 = 54$", "54", False, False, True),
    # A minus that is apart from its number.
    *(
        (f"{start}{minus}", gold, False, False, gold == "-5")
        for start in ("", "It is ", "\\boxed{", "x = ", "Answer: ")
        for minus in (
            "-\\$5",
            "-\u20ac5",
            "\u2212\u00a35",
            "-{5}",
            "{-}5",
            "- 5",
            "\u2212 5",
            "-\\text{5}",
            "minus 5",
            "Minus $5",
            "negative 5",
        )
        for gold in ("5", "-5")
    ),
    ("10 - 5", "5", False, False, True),
    ("x \u2212 5", "5", False, False, True),
    ("10 minus 5", "5", False, False, True),
    ("(a) - 5", "5", False, False, True),
    ("The total - 5", "5", False, False, True),
    ("They are:\n- 5", "5", False, False, True),
    ("a non-negative 5", "5", False, False, True),
    # What stands between thousands is part of the number.
    *(
        (f"It is {number}", gold, False, False, gold == "-71000")
        for number in (
            "-71{,}000",
            "-71\\,000",
            "-71,\\!000",
            "-71 000",
            "-71\u202f000",
            "\u221271'000",
            "-\\$71{,}000",
        )
        for gold in ("-71000", "0", "71000")
    ),
    ("It is 1 000 000", "1000000", False, False, True),
    ("It is 5 1000", "1000", False, False, True),
    ("It is 5\n100", "100", False, False, True),
    ("It is $18/hour", "18", False, False, True),
    ("It is version 1.2.3", "3", False, False, False),
    # Empty.
    ("", "18", False, False, False),
    ("   \n\n", "18", False, False, False),
    ("####", "18", False, False, False),
    ("#### ", "0", False, False, False),
    ("#### .", "0", False, False, False),
    ("#### ,", "0", False, False, False),
    ("#### $", "0", False, False, False),
    ("#### -", "0", False, False, False),
    # Unicode: other digits, look-alikes, other line ends.
    ("#### \u0661\u0668", "18", False, False, False),
    ("#### \uff11\uff18", "18", False, False, False),
    ("#### \U0001d7cf\U0001d7d6", "18", False, False, False),
    ("#### 1\u00b2", "1", True, False, True),
    ("#### 18\u0663", "18", True, False, True),
    ("\uff03\uff03\uff03\uff03 18", "18", False, False, True),
    ("####\u00a018", "18", False, False, True),
    ("#### 18\u00a0", "18", True, True, True),
    ("#### 18\u200b", "18", True, False, True),
    ("#### 18\u202819", "18", True, False, False),
    ("#### 18\x0019", "18", True, False, False),
]

# (completion, gold, strict and official, lenient)
MEDQA = [
    ("Answer: C", "C", True, True),
    ("Answer: C", "D", False, False),
    ("The patient has a fever.\nAnswer: C\n\n", "C", True, True),
    ("Answer: C", "#### C", True, True),
    ("  Answer: C", "C", True, True),
    ("Answer:C", "C", True, True),
    ("Answer: C.", "C", True, True),
    ("Answer: C. Nitrofurantoin", "C", True, True),
    ("Answer: C) Nitrofurantoin", "C", True, True),
    ("Answer: C\r\n", "C", True, True),
    ("Answer: E", "E", True, True),
    # The first letter only.
    ("Answer: C or D", "C", True, True),
    ("Answer: C or D", "D", False, False),
    ("Answer: A, B, C, D", "D", False, False),
    ("Answer: A B C D", "A", True, True),
    ("Answer: ABCD", "A", False, False),
    ("Answer: A/B", "B", False, False),
    # The last line only.
    ("Answer: C\nI am sure.", "C", False, True),
    ("Answer: C\nAnswer: D", "C", False, False),
    ("Answer: C\nAnswer: D", "D", True, True),
    ("Answer:\nC", "C", False, True),
    ("So, Answer: C", "C", False, True),
    # Text of an option instead of its letter.
    ("Answer: Cephalexin", "C", False, False),
    ("Answer: C-reactive protein", "C", False, False),
    ("Answer: C's", "C", False, False),
    ("Answer: D\u00e9j\u00e0 vu", "D", False, False),
    ("Answer: Nitrofurantoin", "C", False, False),
    # Other forms.
    ("answer: C", "C", False, True),
    ("ANSWER IS C", "C", False, True),
    ("Answer: c", "C", False, False),
    ("Answer: (C)", "C", False, True),
    ("**Answer: C**", "C", False, True),
    ("Answer: **C**", "C", False, True),
    ("The correct answer is (B) because A is contraindicated.", "B", False, True),
    ("The correct answer is (B) because A is contraindicated.", "A", False, False),
    ("The answer is A. No, the answer is B.", "B", False, True),
    ("C", "C", False, True),
    ("I would choose D here", "D", False, True),
    ("Vitamin K, not A or B", "B", False, True),
    ("Answer C", "C", False, True),
    ("It is B, by PCA", "B", False, True),
    ("It is B, not HLA-A", "B", False, True),
    ("Answer: C, though some say the answer is D", "C", True, True),
    ("#### C", "C", False, True),
    # Letters that are none.
    ("Answer: F", "C", False, False),
    ("Answer: 3", "C", False, False),
    ("Answer: \u0421", "C", False, False),
    ("Answer: \uff23", "C", False, False),
    ("Answer: ", "C", False, False),
    ("Answer:", "C", False, False),
    ("", "C", False, False),
    ("\n \n", "C", False, False),
]


@pytest.mark.parametrize(("completion", "gold", "official", "strict", "lenient"), GSM8K)
def test_gsm8k_completions(completion: str, gold: str, official: bool, strict: bool, lenient: bool) -> None:
    got = {rule: grade_gsm8k(completion, gold, rule) for rule in RULES}
    assert got == {"official": official, "strict": strict, "lenient": lenient}


@pytest.mark.parametrize(("completion", "gold", "strict", "lenient"), MEDQA)
def test_medqa_completions(completion: str, gold: str, strict: bool, lenient: bool) -> None:
    got = {rule: grade_medqa(completion, gold, rule) for rule in RULES}
    assert got == {"official": strict, "strict": strict, "lenient": lenient}


@pytest.mark.parametrize("grade", [grade_gsm8k, grade_medqa])
def test_unknown_rule_names_the_three(grade: Callable[..., bool]) -> None:
    with pytest.raises(ValueError, match=r"'loose'.*official, strict, lenient"):
        grade("#### 18", "18", "loose")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "gold", ["", "####", "eighteen", "1e3", "1/2", "$18", "18.", "+18", "10,00", "\u0661", "nan", "18 eggs"]
)
def test_a_gold_answer_that_is_no_number_is_an_error(gold: str, rule: str) -> None:
    with pytest.raises(ValueError, match="gold = "):
        grade_gsm8k("#### 18", gold, rule)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("gold", ["", "c", "F", "CD", "C.", "Nitrofurantoin", "\uff23"])
def test_a_gold_answer_that_is_no_letter_is_an_error(gold: str, rule: str) -> None:
    with pytest.raises(ValueError, match="gold = "):
        grade_medqa("Answer: C", gold, rule)


def test_the_default_rule_is_the_published_one() -> None:
    assert not grade_gsm8k("#### $18", "18") and grade_gsm8k("#### 18 eggs", "18")
    assert grade_medqa("Answer: C", "C") and not grade_medqa("(C)", "C")


texts = st.one_of(
    st.text(alphabet="#0123 48.,$-\nx", max_size=40),
    st.builds(
        "{}#### {}{}".format, st.text("1 #\n", max_size=4), st.text("0123456789,.$- ", max_size=9), st.text("\n.5x ")
    ),
)
numbers = st.one_of(
    st.integers(-30, 30).map(str), st.integers(1000, 10**9).map("{:,}".format), st.decimals(-9, 9, places=2).map(str)
)


@settings(max_examples=400, deadline=None)
@given(texts, numbers)
@example("#### $-1,000.00.", "-1000")
@example("#### -$5", "-5")
def test_strictly_right_is_leniently_right(text: str, gold: str) -> None:
    for completion in (text, f"{text}\n#### {gold}", f"#### ${gold}.", f"it is {gold}"):
        if grade_gsm8k(completion, gold, "strict"):
            assert grade_gsm8k(completion, gold, "lenient")


@settings(max_examples=400, deadline=None)
@given(texts, numbers)
@example("18.0 18", "18")
@example("$$\\boxed{18}$$", "18")
@example("72 clips...", "72")
def test_flexible_extract_is_the_harness_s(text: str, gold: str) -> None:
    """lm-evaluation-harness: RegexFilter(group_select=-1), then exact_match with its regexes_to_ignore."""
    for completion in (text, f"{text} {gold}", f"{gold}, {text}"):
        found = re.findall(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", completion)
        taken = next(group for group in found[-1] if group).strip() if found else "[invalid]"
        reference = gold
        for ignored in (",", r"\$", r"(?s).*#### ", r"\.$"):
            taken, reference = re.sub(ignored, "", taken), re.sub(ignored, "", reference)
        assert grade_gsm8k(completion, gold, "flexible_extract") == (taken.lower() == reference.lower())


@settings(max_examples=400, deadline=None)
@given(texts, numbers)
def test_lenient_reads_the_last_number(text: str, gold: str) -> None:
    """Whatever stands before it, and with dots, dollars or words behind it."""
    for behind in ("", ".", "...", "$$", " clips...", "}$$.", " dollars"):
        assert grade_gsm8k(f"{text} x {gold}{behind}", gold, "lenient"), behind
        assert not grade_gsm8k(f"{text} x {gold}{behind}", f"1{gold.lstrip('-').replace(',', '')}", "lenient")


HOSTILE = [
    "1" * MEGABYTE,
    "#### " + "1" * MEGABYTE,
    "#### " + "1" * MEGABYTE + "x",
    "#### 1" + ",000" * (MEGABYTE // 4),
    "#### 1" + ",000" * (MEGABYTE // 4) + "x",
    "#### 1." + "0" * MEGABYTE,
    "#### 1." + "0" * MEGABYTE + "x",
    "#### " + "0" * MEGABYTE + "1",
    "#" * MEGABYTE,
    "#### " * (MEGABYTE // 5),
    "#### -" * (MEGABYTE // 6),
    "#### " + "-" * MEGABYTE,
    "#### " + "." * MEGABYTE,
    "#### " + "$" * MEGABYTE,
    "1 " * (MEGABYTE // 2),
    "-$" * (MEGABYTE // 2),
    " " * MEGABYTE + "x",
    "#### 1" + " " * MEGABYTE + "x",
    "\n" * MEGABYTE,
    "Answer: " * (MEGABYTE // 8),
    "Answer" + " " * MEGABYTE,
    ("Answer" + " " * 9) * (MEGABYTE // 15),
    ("Answer is   :" + "( * " * 2) * (MEGABYTE // 20),
    "Answer:" + " " * MEGABYTE + "C",
    "Answer: " + "C" * MEGABYTE,
    "A " * (MEGABYTE // 2),
    "A'" * (MEGABYTE // 2),
]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("completion", HOSTILE, ids=lambda text: f"{text[:9]!r}..{text[-3:]!r}")
def test_a_megabyte_is_graded_in_less_than_a_second(completion: str, rule: str) -> None:
    # Processor time: another process on this machine is no fault of the rule.
    start = time.process_time()
    grade_gsm8k(completion, "1", rule)
    grade_medqa(completion, "C", rule)
    assert time.process_time() - start < 1.0


@pytest.mark.parametrize(
    "completion", ["1" * MEGABYTE, "5" + "." * MEGABYTE, "#### " * (MEGABYTE // 5), "\\frac{" * 9**5]
)
def test_other_rules_take_linear_time_too(completion: str) -> None:
    start = time.process_time()
    grade_gsm8k(completion, "5", "flexible_extract")
    grade_gsm8k(f"{completion}5", "5", "lenient")
    grade_gsm8k("1 000" + " 000" * (MEGABYTE // 4) + "0", "5", "lenient")
    assert time.process_time() - start < 2.0


@pytest.mark.parametrize("rule", RULES)
def test_long_numbers_are_compared_exactly(rule: str) -> None:
    long = "7" * MEGABYTE
    assert grade_gsm8k("#### " + long, long, rule)
    assert not grade_gsm8k("#### " + long, long[:-1] + "8", rule)


def test_long_fractions_are_compared_exactly() -> None:
    assert grade_gsm8k("#### 1." + "0" * MEGABYTE, "1", "strict")
    assert not grade_gsm8k("#### 1." + "0" * MEGABYTE + "1", "1", "strict")


def rows(*files: Path) -> Iterator[dict]:
    for file in files:
        with file.open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)


@pytest.mark.realdata
@pytest.mark.parametrize(("split", "count"), [("train", 7473), ("test", 1319)])
def test_all_gsm8k_gold_answers_are_right(realdata: Path, split: str, count: int) -> None:
    graded = 0
    for row in rows(realdata / "gsm8k" / f"{split}.jsonl"):
        answer = row["answer"]
        bare = answer.split("#### ")[1]
        other = f"{int(bare.replace(',', '')) + 1:,}"
        for rule in RULES:
            for gold in (answer, bare, bare.replace(",", "")):
                assert grade_gsm8k(answer, gold, rule), (answer, gold, rule)
            for gold in (other, f"#### {other}"):
                assert not grade_gsm8k(answer, gold, rule), (answer, gold, rule)
        reasoning = answer.split("#### ")[0]
        assert not grade_gsm8k(reasoning, answer, "official") and not grade_gsm8k(reasoning, answer, "strict")
        assert grade_gsm8k(f"{reasoning}#### ${bare}.00", answer, "strict")
        assert grade_gsm8k(f"{reasoning}So the answer is {bare}.", answer, "lenient")
        assert not grade_gsm8k(f"{reasoning}#### {bare} dollars", answer, "strict")
        assert not grade_gsm8k(f"{reasoning}#### {bare}\n{reasoning}", answer, "strict")
        graded += 1
    assert graded == count


MEDQA_ROWS = {"dev": 1272, "test": 1273, "test_5options": 1273, "train_small": 100, "train_small_5options": 50}


@pytest.mark.realdata
@pytest.mark.parametrize(("name", "count"), list(MEDQA_ROWS.items()))
def test_all_medqa_gold_answers_are_right(realdata: Path, name: str, count: int) -> None:
    graded = 0
    for row in rows(realdata / "medqa" / f"{name}.jsonl"):
        gold = row["answer_idx"]
        for letter, option in row["options"].items():
            text = " ".join(option.split())  # 143 texts hold line ends of their own
            forms = {
                "strict": [f"Answer: {letter}", f"{row['question']}\nAnswer: {letter}. {text}"],
                "lenient": [
                    f"The answer is ({letter}).",
                    f"{row['question']}\nCorrect answer: {letter}. {text}\nDone.",
                ],
            }
            for completion in forms["strict"]:
                assert all(grade_medqa(completion, gold, rule) == (letter == gold) for rule in RULES), completion
            for completion in forms["lenient"]:
                assert not grade_medqa(completion, gold, "strict"), completion
                assert grade_medqa(completion, gold, "lenient") == (letter == gold), completion
        graded += 1
    assert graded == count


@pytest.mark.realdata
def test_quoting_an_option_is_not_naming_it(realdata: Path) -> None:
    """But for texts whose first word is a letter, such as "A fracture" or "C. difficile": 113 of 17195."""
    read_as_letter, total = [], 0
    for row in rows(*(realdata / "medqa" / f"{name}.jsonl" for name in MEDQA_ROWS)):
        for text in row["options"].values():
            total += 1
            if any(grade_medqa(f"Answer: {text}", letter, "strict") for letter in "ABCDE"):
                read_as_letter.append(text)
    assert total == 17195
    assert len(read_as_letter) == 113
    assert all(re.match(r"[A-E][ .]|[A-E]$", text) for text in read_as_letter), read_as_letter


@pytest.mark.parametrize(
    ("completion", "number", "letter", "text", "lenient_text"),
    [
        ("2 + 2 = 4\n#### 1,004.", "1004", None, None, "1,004."),
        ("#### $-3\n", "-3", None, None, "$-3"),
        ("#### 4\n#### 5", None, None, None, "5"),
        ("So.\nAnswer: C, for sure", None, "C", "C, for sure", "C, for sure"),
        ("Answer: Cough", None, None, "Cough", "Cough"),
        ("Answer:\n1 2\n3 4\n", None, None, "1 2\n3 4", "1 2\n3 4"),
        (" Answer: A\nAnswer: B", None, "B", None, "B"),
        ("The Answer: B\n\n", None, None, None, "B"),
        ("Answer: 1\n#### 2", "2", None, "1\n#### 2", "1\n#### 2"),
        ("#### 1 and the Answer: 2", None, None, None, "2"),
        ("First.\n last line \n", None, None, None, "last line"),
        ("Answer:", None, None, None, None),
        ("", None, None, None, None),
    ],
)
def test_text_answers_are_found(
    completion: str, number: str | None, letter: str | None, text: str | None, lenient_text: str | None
) -> None:
    assert (find_number(completion), find_letter(completion)) == (number, letter)
    assert find_text(completion) == find_text(completion, "official") == text
    assert find_text(completion, "lenient") == lenient_text


def test_gold_numbers_lose_their_commas() -> None:
    assert [gold_number(gold) for gold in ("18", "so\n#### 1,000", " -3 ")] == ["18", "1000", "-3"]
    with pytest.raises(ValueError, match="rule = 'exact': allowed are official, strict, lenient"):
        find_text("x", "exact")


@pytest.mark.parametrize("text", ["Answer:", "\nAnswer: ", " ", "\n", "####", "Answer: x ####\n"])
def test_texts_are_found_in_linear_time(text: str) -> None:
    completion = text * (MEGABYTE // len(text))
    start = time.perf_counter()
    for rule in RULES:
        find_text(completion, rule)
    assert time.perf_counter() - start < 2.0
