"""How the rows of GSM8K and MedQA become texts."""

import re

from titan_pt.data.builtin.questions import QUESTION_ANSWER
from titan_pt.data.sources.formatters import Formatter
from titan_pt.data.sources.formatters import Record as Row

_CALCULATOR = re.compile(r"<<[^<>]*>>")


# The source text of these two functions is in the fingerprints of data that runs were trained on: with one letter of
# them changed, an old run does not resume.
def format_medqa(row: Row) -> str:
    """A MedQA question with its options, one a line, and the marked answer."""
    options = "\n".join(f"{letter}. {text}" for letter, text in sorted(row["options"].items()) if text is not None)
    answer = row["options"][row["answer_idx"]]
    return f"Question: {row['question'].strip()}\n{options}\nAnswer: {row['answer_idx']}. {answer}\n"


def format_gsm8k(row: Row) -> str:
    """A GSM8K question and its worked answer, which ends in `#### <integer>`, without the calculator's marks."""
    prompt = QUESTION_ANSWER.replace("{question}", row["question"].strip())
    return f"{prompt} {without_calculator(row['answer']).strip()}\n"


def without_calculator(answer: str) -> str:
    """A GSM8K answer without the marks "<<48/2=24>>" of its calculator."""
    return _CALCULATOR.sub("", answer)


MEDQA = Formatter("medqa", ("question", "options", "answer_idx"), format_medqa)
GSM8K = Formatter("gsm8k", ("question", "answer"), format_gsm8k)
