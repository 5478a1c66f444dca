"""The generated conversations: right, in the form that is trained on, the same everywhere; what none of them asks."""

import hashlib
import json
import re

import pytest
from data_helpers import open_one

from titan_pt.components.tokenizer import ByteTokenizer
from titan_pt.config import ConfigError, load_config
from titan_pt.config.schema.job_config import Source
from titan_pt.data.builtin.conversations import NUMBERS, UNKNOWN, HeldOutSums, MadeConversations, held_out_sums
from titan_pt.trainers.sft.records import record_tokens

SUM = re.compile(r"([A-Z][a-z-]+) plus ([a-z-]+) is ([a-z-]+)\.")


def value(word: str) -> int:
    return NUMBERS.index(word.lower())


def said(record: dict[str, list[dict[str, str]]], role: str) -> list[str]:
    return [message["content"] for message in record["messages"] if message["role"] == role]


@pytest.fixture(scope="module")
def records() -> list[dict[str, list[dict[str, str]]]]:
    made = MadeConversations(42)
    return [made[index] for index in range(len(made))]


def test_every_answer_is_right_and_goes_on_from_the_last(records: list) -> None:
    kinds = dict.fromkeys(("asked", "went on", "unknown"), 0)
    for record in records:
        total = None
        for question, answer in zip(said(record, "user"), said(record, "assistant"), strict=True):
            found = SUM.fullmatch(answer)
            kinds["unknown"] += answer == UNKNOWN
            if not found:
                total = None
                continue
            a, b, c = map(value, found.groups())
            assert a + b == c, record
            words = re.findall(r"[0-9]+|[a-z]+", question.lower())
            named = [
                int(word) if word.isdigit() else value(word) for word in words if word.isdigit() or word in NUMBERS
            ]
            assert named == [a, b] or (named == [b] and a == total), record
            kinds["asked" if len(named) == 2 else "went on"] += 1
            total = c
    assert min(kinds.values()) > 1000, kinds


def test_each_fits_a_row_and_is_the_same_everywhere(records: list) -> None:
    config = load_config(["--job.config_file", "train_configs/quickstart_chat.toml"])
    tokenizer = ByteTokenizer()
    lengths = [len(record_tokens(record, tokenizer)[0]) for record in records[::20]]
    assert 0.9 * config.training.seq_len < max(lengths) <= config.training.seq_len + 1
    digest = hashlib.sha256(json.dumps(records[:500]).encode()).hexdigest()
    assert digest.startswith("494aa52f16fb"), "a change of the conversations needs another fingerprint"
    assert records[7] == MadeConversations(42)[7] != MadeConversations(43)[7]
    with pytest.raises(IndexError):
        MadeConversations(42)[len(records)]


def test_nothing_that_is_held_out_is_ever_asked(records: list) -> None:
    """Whichever letters are capitals, with its last mark or without."""
    held_out = {bare(question) for question, _ in held_out_sums()}
    assert 300 < len(held_out) < 500
    pairs = {tuple(map(value, SUM.fullmatch(answer).groups()[:2])) for _, answer in held_out_sums()}  # type: ignore[union-attr]
    assert len(pairs) > 80
    asked = {bare(question) for record in records for question in said(record, "user")}
    assert asked.isdisjoint(held_out) and len(asked) > 3000
    assert [said(HeldOutSums()[i], "user")[0] for i in range(50)] == [question for question, _ in held_out_sums()][:50]


def bare(question: str) -> str:
    return question.lower().rstrip("?.! ")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"subset": "held_out"}, r"subset = 'held_out': unknown; allowed is \"held-out\""),
        ({}, 'holds conversations, not texts; train on them with job.trainer = "sft"'),
    ],
)
def test_what_it_is_not_for(fields: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_one(Source(name="conversations", **fields), seed=0, cache_dir=None)
