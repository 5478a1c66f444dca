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


def made(follow_ups: bool = False) -> list[dict[str, list[dict[str, str]]]]:
    talks = MadeConversations(42, follow_ups=follow_ups)
    return [talks[index] for index in range(len(talks))]


@pytest.fixture(scope="module")
def records() -> list[dict[str, list[dict[str, str]]]]:
    return made()


@pytest.fixture(scope="module")
def follow_ups() -> list[dict[str, list[dict[str, str]]]]:
    return made(follow_ups=True)


def test_every_answer_is_right_and_goes_on_from_the_last(records: list, follow_ups: list) -> None:
    kinds = answers(records)
    assert min(kinds.values()) > 1000, kinds
    kinds = answers(follow_ups)
    assert kinds["went on"] > 0.7 * len(follow_ups) and kinds["unknown"] > 0.3 * len(follow_ups), kinds


def answers(records: list) -> dict[str, int]:
    """How many there are of each kind, all of which are right."""
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
    return kinds


def test_each_fits_a_row_and_is_the_same_everywhere(records: list, follow_ups: list) -> None:
    config = load_config(["--job.config_file", "train_configs/quickstart_chat.toml"])
    tokenizer = ByteTokenizer()
    for some, wanted in ((records, "494aa52f16fb"), (follow_ups, "67d68cb2a27d")):
        lengths = [len(record_tokens(record, tokenizer)[0]) for record in some[::20]]
        assert 0.9 * config.training.seq_len < max(lengths) <= config.training.seq_len + 1
        digest = hashlib.sha256(json.dumps(some[:500]).encode()).hexdigest()
        assert digest.startswith(wanted), "a change of the conversations needs another fingerprint"
    assert records[7] == MadeConversations(42)[7] != MadeConversations(43)[7]
    with pytest.raises(IndexError):
        MadeConversations(42)[len(records)]


def test_nothing_that_is_held_out_is_ever_asked(records: list, follow_ups: list) -> None:
    """Whichever letters are capitals, with its last mark or without."""
    held_out = {bare(question) for question, _ in held_out_sums()}
    assert 300 < len(held_out) < 500
    pairs = {tuple(map(value, SUM.fullmatch(answer).groups()[:2])) for _, answer in held_out_sums()}  # type: ignore[union-attr]
    assert len(pairs) > 80
    asked = {bare(question) for record in records + follow_ups for question in said(record, "user")}
    assert asked.isdisjoint(held_out) and len(asked) > 3000
    assert [said(HeldOutSums()[i], "user")[0] for i in range(50)] == [question for question, _ in held_out_sums()][:50]


def bare(question: str) -> str:
    return question.lower().rstrip("?.! ")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "conversations", "subset": "held_out"}, r"subset = 'held_out': unknown; allowed is \"held-out\""),
        ({"name": "follow_ups", "subset": "held-out"}, "subset = 'held-out': it has none"),
        ({"name": "conversations"}, 'holds conversations, not texts; train on them with job.trainer = "sft"'),
        ({"name": "follow_ups"}, 'holds conversations, not texts; train on them with job.trainer = "sft"'),
    ],
)
def test_what_it_is_not_for(fields: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_one(Source(**fields), seed=0, cache_dir=None)
