"""Records as rows of tokens of which the answers are learnt, and what becomes of bad ones."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_helpers import Texts, mixture_of, open_one, through_json
from task_helpers import CASES, SUMS, asked, open_row, write_rows

from titan_pt.components.tokenizer import ByteTokenizer
from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.job_config import Data, Job, JobConfig, Source
from titan_pt.data.builtin.formatters import without_calculator
from titan_pt.data.sources.alone import open_alone
from titan_pt.data.sources.documents import Documents
from titan_pt.data.sources.opening import MixtureSource
from titan_pt.data.stream.batch import IGNORED, collate
from titan_pt.data.stream.mixture import TokenizedMixture
from titan_pt.data.stream.resuming import load_state
from titan_pt.data.stream.row import PackedRow
from titan_pt.data.stream.stream import Stream
from titan_pt.trainers.sft.records import Conversations, with_records
from titan_pt.trainers.sft.spec import check_records

BYTES = ByteTokenizer()
TALK = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Bye"},
        {"role": "assistant", "content": "Goodbye."},
    ]
}
PAIR = {"prompt": "Question: 1 + 1?\nAnswer:", "completion": " 2"}


def encoder(seq_len: int = 256, **options: Any) -> Conversations:
    return Conversations(seq_len, **{"on_bad_record": "error", "overlong": "error", **options})


def records(*found: Any, seq_len: int = 256, **options: Any) -> TokenizedMixture:
    documents = Texts(json.dumps(record) for record in found)
    return mixture_of(MixtureSource("s", documents, 1.0, 1.0), encoder=encoder(seq_len, **options), packing="best_fit")


def opened(name: str, **fields: Any) -> Documents:
    """The records of a source of an sft run."""
    config = with_records(JobConfig(data=Data(sources=[Source(name=name, **fields)])))
    return open_one(config.data.sources[0], seed=1, cache_dir=None)


def learnt_of(rows: list[PackedRow]) -> list[str]:
    """What the targets of each row say."""
    targets = collate(rows).targets_BL
    return [BYTES.decode([t for t in row.tolist() if t != IGNORED]) for row in targets]


# What is learnt


@pytest.mark.parametrize(
    ("record", "whole", "learnt"),
    [
        (PAIR, "Question: 1 + 1?\nAnswer: 2<|endoftext|>", " 2<|endoftext|>"),
        (
            TALK,
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
            "Hello!<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\nGoodbye.<|im_end|>",
            "Hello!<|im_end|>Goodbye.<|im_end|>",
        ),
    ],
)
def test_only_answers_and_the_ends_of_turns_are_learnt(record: Any, whole: str, learnt: str) -> None:
    (row,) = Stream(records(record), 0, 1, 256)
    assert BYTES.decode(row.tokens[: row.num_tokens].tolist()) == whole
    assert learnt_of([row]) == [learnt]
    ends = learnt.count("<|")
    assert row.num_targets == len(learnt) - sum(len(name) * learnt.count(name) for name in BYTES.special_ids) + ends


def test_packed_records_are_whole_apart_and_learnt_alike() -> None:
    pairs = [{"prompt": f"Question {i}:", "completion": " yes" * (1 + i % 7)} for i in range(60)]
    documents = records(*pairs, TALK, seq_len=160)
    rows = list(Stream(documents, 0, 1, 160))
    assert len(rows) < 20, "several records share a row"
    learnt = []
    for row in rows:
        starts = [i for i in range(row.num_tokens) if row.positions[i] == 0]
        ends = [*starts[1:], row.num_tokens]
        assert len(starts) == len(row.documents)
        for start, end in zip(starts, ends, strict=True):
            assert np.array_equal(row.positions[start:end], np.arange(end - start))
            assert not row.targets[start], "a record does not predict the next one"
            learnt.append(BYTES.decode(row.tokens[start:end][row.targets[start:end]].tolist()))
        assert not row.targets[row.num_tokens :].any()
    expected = [pair["completion"] + "<|endoftext|>" for pair in pairs]
    assert sorted(learnt) == sorted([*expected, "Hello!<|im_end|>Goodbye.<|im_end|>"])
    assert sum(len(text) for text in learnt_of(rows)) == sum(map(len, learnt))
    num_bytes = sum(len(pair["completion"]) for pair in pairs) + len("Hello!Goodbye.")
    assert sum(row.num_bytes for row in rows) == pytest.approx(num_bytes, abs=2), "one end of a turn is in the mean"


def test_a_cut_record_keeps_the_beginning_of_its_answer() -> None:
    long = {"prompt": "Q" * 20, "completion": "A" * 100}
    (row,) = Stream(records(long, seq_len=49, overlong="truncate"), 0, 1, 49)
    assert learnt_of([row]) == ["A" * 30] and row.num_tokens == 50
    (row,) = Stream(records(long, PAIR, seq_len=40, overlong="skip"), 0, 1, 40)
    assert learnt_of([row]) == [" 2<|endoftext|>"]
    with pytest.raises(ConfigError, match=r"data source 's', document 0: 121 tokens, and training\.seq_len leaves 50"):
        next(iter(Stream(records(long, seq_len=49), 0, 1, 49)))
    questions = {"prompt": "Q" * 60, "completion": "A"}
    stream = Stream(records(questions, PAIR, seq_len=49, overlong="truncate"), 0, 1, 49)
    assert learnt_of(list(stream)) == [" 2<|endoftext|>"] and stream.skipped == [1], "nothing to learn is left of it"


# The documents are the tasks' prompts


def first(documents: Documents, number: int = 0) -> dict[str, str]:
    return json.loads(documents[number])


def test_gsm8k_is_what_its_task_asks(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "sums.jsonl", SUMS)
    documents, task = opened("gsm8k", path=path), open_row("gsm8k", path=path)
    prompts = {task.prompt(problem): problem for problem in [*asked(task.train), *asked(task.evaluation)]}
    for number in range(len(SUMS)):
        record = first(documents, number)
        problem = prompts[record["prompt"]]
        assert record["completion"] == f" It is .\n#### {problem.gold}"
        assert record["prompt"] + record["completion"] == without_calculator(task.worked(problem))
        assert task.grade(record["completion"], problem, "strict")


def test_medqa_is_what_its_task_asks(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "cases.jsonl", CASES)
    hub = [
        {"sent1": row["question"], "sent2": "", "label": "ABCD".index(row["answer_idx"])}
        | {f"ending{i}": text for i, text in enumerate(row["options"].values())}
        for row in CASES
    ]
    other = opened("medqa", path=write_rows(tmp_path / "hub.jsonl", hub))
    documents, task = opened("medqa", path=path), open_row("medqa", path=path, shuffle_options=False)
    prompts = {task.prompt(problem): problem for problem in [*asked(task.train), *asked(task.evaluation)]}
    for number in range(len(CASES)):
        record = first(documents, number)
        problem = prompts[record["prompt"]]
        assert record["completion"] == f"Answer: {problem.gold}" and record == first(other, number)
        assert task.grade(record["completion"], problem, "strict")


def test_arithmetic_is_what_its_task_trains_on() -> None:
    task = open_row("arithmetic", level=1)
    documents = opened("arithmetic", subset="level-1")
    found = [first(documents, number) for number in range(len(documents))]
    assert {r["prompt"] + r["completion"] for r in found} == {task.worked(p) for p in asked(task.train)}
    held_out = {task.prompt(problem) for problem in asked(task.evaluation)}
    mixed = opened("arithmetic")
    assert not held_out & {first(mixed, number)["prompt"] for number in range(2000)}
    with pytest.raises(IndexError):
        documents[len(documents)]


def test_sorting_is_what_its_task_trains_on() -> None:
    task, documents = open_row("sorting", level=1), opened("sorting", subset="level-1")
    found = {
        (record["prompt"], record["completion"]) for record in map(json.loads, map(documents.__getitem__, range(99)))
    }
    worked = {(task.prompt(p), " " + p.solution) for p in asked(task.train)}
    assert len(found) > 80 and found <= worked


@pytest.mark.realdata
def test_real_questions(realdata: Path) -> None:
    for name, file, count in (("medqa", "medqa/dev.jsonl", 1272), ("gsm8k", "gsm8k/train.jsonl", 7473)):
        documents = opened(name, path=str(realdata / file))
        assert len(documents) == count
        found = [first(documents, number) for number in range(0, count, 13)]
        assert all(record["prompt"].startswith("Question: ") and "<<" not in record["completion"] for record in found)


# Rows of any shape


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_chat_rows(tmp_path: Path, ending: str) -> None:
    rows = [{**TALK, "id": 1, "prompt": None, "completion": None}, {**PAIR, "id": 2, "messages": None}]
    path = tmp_path / f"chat.{ending}"
    if ending == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in [{**TALK, "id": 1}, PAIR]))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    documents = opened("mine", path=str(path))
    assert [first(documents, 0), first(documents, 1)] == [TALK, PAIR]


def test_parts_of_text_weights_and_parts_of_a_conversation(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
    again = [SPEAK[0], {"role": "assistant", "content": "No", "weight": 0}]
    rows = [
        {"messages": [{"role": "user", "content": parts}, {**SPEAK[1], "name": "x"}], "tools": []},
        {"messages": [*again, *SPEAK]},
        {"prompt": [*SPEAK, SPEAK[0]], "completion": [{"role": "assistant", "content": "End"}]},
    ]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    documents = opened("mine", path=path)
    found = [encoder().encode(documents[number], BYTES) for number in range(3)]
    learnt = [BYTES.decode(one.tokens[one.targets].tolist()) for one in found]
    assert learnt == ["Yo<|im_end|>", "Yo<|im_end|>", "End<|im_end|>"]
    assert [one.num_bytes for one in found] == [2, 2, 3]
    assert BYTES.decode(found[0].tokens.tolist()).startswith("<|im_start|>user\nHi<|im_end|>")
    assert "No<|im_end|>" in BYTES.decode(found[1].tokens.tolist())


def test_the_bytes_of_a_cut_record_are_those_of_what_is_left() -> None:
    long = json.dumps({"prompt": "Q" * 20, "completion": "A" * 100})
    assert encoder(49, overlong="truncate").encode(long, BYTES).bytes_per_token == pytest.approx(1.0)


def test_rows_that_are_read_by_row_group(tmp_path: Path) -> None:
    rows = [{"prompt": f"Say {i}:", "completion": f" {i}", "id": i} for i in range(40)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet", row_group_size=4)
    source = Source(name="mine", path=str(tmp_path / "x.parquet"))
    data = Data(sources=[source], num_streams=1, cache_dir=str(tmp_path / "cache"))
    config = with_records(JobConfig(job=Job(dump_folder=str(tmp_path)), data=data))
    (found,) = open_alone(config.data.sources, config)
    assert found.by_row_group
    mixture = mixture_of(MixtureSource("mine", found.documents, 1.0, 1.0), encoder=encoder(), packing="best_fit")
    learnt = "".join(learnt_of(list(Stream(mixture, 0, 1, 256))))
    assert mixture.sources[0].describe(5) == "document 5 (x.parquet, row group 1, row 1)"
    assert sorted(learnt.split("<|endoftext|>")[:-1]) == sorted(row["completion"] for row in rows)


SPEAK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
BAD: list[tuple[Any, str]] = [
    ({"text": "x"}, "neither 'messages' nor 'prompt' and 'completion'; it has text"),
    ({"prompt": "Hi"}, "neither 'messages' nor"),
    ({"prompt": "Hi", "completion": "  "}, "'completion' is '  '; want text"),
    ({"prompt": "", "completion": "x"}, "'prompt' is ''; want text"),
    ({"prompt": "Hi", "completion": 3}, "'completion' is 3; want text"),
    ({"messages": []}, r"'messages' is \[\]; want a list"),
    ({"messages": "Hi"}, "'messages' is 'Hi'; want a list"),
    ({"messages": ["Hi"]}, "message 0 is 'Hi'; want an object"),
    ({"messages": [{"role": "user"}, SPEAK[1]]}, "the content of message 0 is .*; want text"),
    ({"messages": [SPEAK[0], {"role": "assistant", "content": ""}]}, "the content of message 1 is ''; want text"),
    ({"messages": SPEAK[::-1]}, "the roles are assistant, user; want a user's and an assistant's in turns"),
    ({"messages": SPEAK[:1]}, "the roles are user; want"),
    ({"messages": [*SPEAK, SPEAK[0]]}, "the roles are user, assistant, user; want"),
    ({"messages": [SPEAK[0], *SPEAK]}, "the roles are user, user, assistant; want"),
    ({"messages": [*SPEAK, {"role": "system", "content": "x"}]}, "the roles are user, assistant, system; want"),
    ({"messages": [{"role": "tool", "content": "x"}, SPEAK[1]]}, "the roles are tool, assistant; want"),
    ({"prompt": "\ud800", "completion": "x"}, "surrogates not allowed"),
    (
        {"messages": [SPEAK[0], {"role": "assistant", "tool_calls": [{}]}]},
        "message 1 calls tools, and the record",
    ),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}, SPEAK[1]]}, "message 0 has a part 'image'; want"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}, SPEAK[1]]}, "message 0 has a part 'text'; want"),
    ({"messages": [SPEAK[0], {**SPEAK[1], "weight": 2}]}, "the weight of message 1 is 2; want 0 or 1"),
    ({"messages": [SPEAK[0], {**SPEAK[1], "weight": 0}]}, "every message of the assistant has weight 0"),
]


@pytest.mark.parametrize(("row", "problem"), BAD)
def test_a_bad_record_is_an_error_or_a_counted_skip(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, row: Any, problem: str
) -> None:
    (tmp_path / "bad.jsonl").write_text(json.dumps(PAIR) + "\n" + json.dumps(row) + "\n")
    documents = opened("mine", path=str(tmp_path / "bad.jsonl"))
    source = MixtureSource("mine", documents, 1.0, 1.0)

    def found(**options: Any) -> TokenizedMixture:
        return mixture_of(source, encoder=encoder(**options), packing="best_fit")

    with pytest.raises(
        ConfigError, match=rf"data source 'mine', document 1 \(.*bad.jsonl, line 2\): .*{problem}.*sft.on_bad_record"
    ):
        check_records(found(), source)
    check_records(found(on_bad_record="skip"), source)
    assert "Data mine: 1 of 2 records are left out: 1 times, first document 1 (" in caplog.text
    stream = Stream(found(on_bad_record="skip"), 0, 1, 256)
    assert learnt_of(list(stream)) == [" 2<|endoftext|>"] and stream.state().skipped == (1,)


def test_nothing_but_bad_records_is_an_error() -> None:
    documents = records({"bad": "no"}, {"bad": "no"}, on_bad_record="skip")
    with pytest.raises(ConfigError, match="all 2 records are left out: 2 times, first document 0: no"):
        check_records(documents, documents.sources[0])
    with pytest.raises(
        ConfigError, match=r"every document is empty, left out or not outside .*; document 0 is left out: no;"
    ):
        documents.require_documents(documents.sources[0])


def test_bad_questions_are_bad_records(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "sums.jsonl", [SUMS[0], {"question": "How?", "answer": "I do not know"}])
    assert "'answer'" in first(opened("gsm8k", path=path), 1)["bad"]
    path = write_rows(tmp_path / "cases.jsonl", [{**CASES[0], "answer_idx": "Z"}])
    assert "'answer_idx' is 'Z'; want one of A, B, C, D" in first(opened("medqa", path=path))["bad"]


def test_unknown_formatters_are_told_by_their_own_names(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "x.jsonl", [PAIR])
    with pytest.raises(ConfigError, match="formatter = 'chatt': unknown to sft; known are chat, gsm8k, medqa"):
        opened("mine", path=path, formatter="chatt")


# Resume


def test_a_resume_gives_the_same_rows_and_counts() -> None:
    pairs = [{"prompt": f"Question {i}:", "completion": " yes" * (1 + i % 7)} for i in range(80)]
    mixed = [pair if i % 5 else {"bad": "no"} for i, pair in enumerate(pairs)]
    documents = records(*mixed, on_bad_record="skip", seq_len=100)
    whole, begun = (Stream(documents, 0, 1, 100) for _ in range(2))
    expected = list(whole)
    for stop in range(1, len(expected) - 1, 3):
        stream = Stream(documents, 0, 1, 100)
        for _ in range(stop):
            stream.next_row(partial=True)
        begun = Stream(documents, 0, 1, 100)
        load_state(begun, through_json(stream.state()))
        for row, other in zip(begun, expected[stop:], strict=True):
            assert np.array_equal(row.tokens, other.tokens) and np.array_equal(row.targets, other.targets)
        assert begun.state() == whole.state() and begun.skipped == [16]
