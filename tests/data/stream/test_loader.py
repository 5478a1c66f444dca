"""Loaders: the same rows on any number of ranks, through any resume; nothing is lost at the end; clean errors."""

import json
import logging
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import pytest
from data_helpers import Texts, ThreadWorld, data_config, loader, mixture_of, on_ranks, texts
from hypothesis import given, settings
from hypothesis import strategies as st

from titan_pt.components.tokenizer import ByteTokenizer
from titan_pt.config.errors import ConfigError
from titan_pt.config.run_size import plan_run_size
from titan_pt.config.schema.job_config import Data, JobConfig, Source, Validation
from titan_pt.data.sources import opening
from titan_pt.data.sources.opening import MixtureSource, open_mixture
from titan_pt.data.stream.batch import IGNORED, StepBatch
from titan_pt.data.stream.loader import DataLoader, build_dataloader
from titan_pt.data.stream.mixture import TokenizedMixture
from titan_pt.data.stream.state import token_hash
from titan_pt.data.stream.stream import Stream
from titan_pt.distributed.world import World

MIXTURE = [
    MixtureSource("a", texts(3, 50, 0, 7, 120, 31, 4, name="a"), 2.0),
    MixtureSource("b", texts(9, 9, 80, 200, name="b"), 1.0, max_epochs=3.0),
]
STREAMS, ROWS = 4, 8
Rows = list[tuple[list[int], list[int], list[int], list[int]]]


def rows_of(batch: StepBatch) -> Rows:
    """(tokens, targets, positions, sources) of each row."""
    return [
        tuple(row.tolist() for row in rows)  # type: ignore[misc]
        for micro in batch.micro_batches
        for rows in zip(*vars(micro).values(), strict=True)
    ]


def batches_of(data: DataLoader, count: int) -> list[StepBatch]:
    """The loader's next batches."""
    return [batch for _ in range(count) if (batch := data.next_batch())]


def in_order(parts: list[Rows], num_streams: int = STREAMS) -> Rows:
    """The rows of all ranks as the global batch has them: row r is of stream r mod S."""
    owned = num_streams // len(parts)
    waiting = [iter(part) for part in parts]
    return [next(waiting[r % num_streams // owned]) for r in range(sum(map(len, parts)))]


def train(
    documents: TokenizedMixture, config: JobConfig, size: int, steps: int, state: dict[str, Any]
) -> tuple[list[Rows], Any]:
    """Train some steps on `size` ranks, from a state if there is one: the global rows of each, and the new state."""

    def run(world: World) -> tuple[list[Rows], dict[str, Any]]:
        data = loader(documents, config, world)
        if state:
            data.load_state_dict(json.loads(json.dumps(state)))
        found = []
        for _ in range(steps):
            batch = data.next_batch()
            if batch is None:
                break
            found.append(rows_of(batch))
            data.commit(batch)
        kept = data.state_dict()
        data.close()
        return found, kept

    results = on_ranks(size, run)
    assert len({len(found) for found, _ in results}) == 1, "all ranks end together"
    merged = {key: value for _, part in results for key, value in part.items()}
    return [in_order(list(context)) for context in zip(*(found for found, _ in results), strict=True)], merged


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from([1, 2, 4])), min_size=1, max_size=6),
    st.sampled_from([0, 2]),
    st.booleans(),
)
def test_rows_do_not_depend_on_saves_and_ranks(parts: list[tuple[int, int]], prefetch: int, finite: bool) -> None:
    sources = [MixtureSource("a", MIXTURE[0].documents, 2.0, 4.0), MIXTURE[1]] if finite else MIXTURE
    documents = mixture_of(*sources, holdout_fraction=0.1)
    config = data_config(rows=ROWS, streams=STREAMS, prefetch=prefetch)
    state: dict[str, Any] = {}
    found: list[Rows] = []
    for steps, size in parts:
        rows, state = train(documents, config, size, steps, state)
        found += rows
    expected, final = train(documents, data_config(rows=ROWS, streams=STREAMS), 1, sum(steps for steps, _ in parts), {})
    assert found == expected
    assert state == final


@pytest.mark.parametrize(("rows", "streams"), [(8, 4), (12, 4), (8, 8), (4, 1), (6, 2)])
def test_row_r_is_of_stream_r_mod_s(rows: int, streams: int) -> None:
    documents = mixture_of(*MIXTURE)
    batches = loader(documents, data_config(rows=rows, streams=streams))
    alone = [Stream(documents, s, streams, 8) for s in range(streams)]
    for _ in range(3):
        batch = batches.next_batch()
        assert batch is not None and batch.num_targets == 8 * rows
        expected = [alone[r % streams].next_row() for r in range(rows)]
        assert [row[0] for row in rows_of(batch)] == [row.tokens[:-1].tolist() for row in expected if row]
        assert set(batch.documents) == {name for row in expected if row for name in row.documents}


def test_rows_do_not_depend_on_prefetch_or_batching() -> None:
    documents = mixture_of(*MIXTURE)
    expected = [rows_of(batch) for batch in batches_of(loader(documents, data_config()), 9)]
    for prefetch, local in ((1, 1), (2, 4), (5, 8)):
        data = loader(documents, data_config(prefetch=prefetch, local=local))
        found = batches_of(data, 9)
        assert [rows_of(batch) for batch in found] == expected
        assert all(micro.tokens_BL.shape == (local, 8) for batch in found for micro in batch.micro_batches)
        data.close()


def test_state_is_that_of_the_committed_batch() -> None:
    documents, config = mixture_of(*MIXTURE), data_config(prefetch=3)
    data = loader(documents, config)
    start = data.state_dict()
    first, second = batches_of(data, 2)
    assert data.state_dict() == start, "nothing was trained on"
    data.commit(first)
    resumed = loader(documents, config)
    resumed.load_state_dict(data.state_dict())
    assert rows_of(batches_of(resumed, 1)[0]) == rows_of(second), "what was not trained on comes again"
    data.load_state_dict(start)  # also into a loader that is under way
    assert rows_of(batches_of(data, 1)[0]) == rows_of(first)
    for one in (data, resumed):
        one.close()


@pytest.mark.parametrize("size", [1, 2, 4])
def test_every_document_is_used_up_before_the_end(size: int, caplog: pytest.LogCaptureFixture) -> None:
    """Streams end at different times: the last documents of the longest are not lost, on any number of ranks."""
    documents = texts(*[10] * 9, 400, 3, 90)
    source = mixture_of(MixtureSource("a", documents, 1.0, max_epochs=1.0))
    with caplog.at_level(logging.WARNING):
        steps, _ = train(source, data_config(rows=ROWS, streams=STREAMS), size, 1000, {})
    assert "from here on batches are smaller" in caplog.text
    assert 3 < len(steps) < 40
    predicted = sum(target != IGNORED for rows in steps for row in rows for target in row[1])
    num_rows = sum(any(target != IGNORED for target in row[1]) for rows in steps for row in rows)
    total = sum(len(text) + 1 for text in documents)
    # Each row's first token is not predicted, and a stream's last end-of-document may be alone.
    assert total - STREAMS <= predicted + num_rows <= total
    assert all(set(row[1]) == {IGNORED} or row[0][0] != IGNORED for rows in steps for row in rows)


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
def test_a_raised_max_epochs_goes_on_behind_the_end(packing: Literal["concat", "best_fit"]) -> None:
    """The last rows were short for the old limit, so they are not made again."""
    documents, config = texts(*[10] * 9, 400, 3, 90), data_config(rows=ROWS, streams=STREAMS)

    def build(max_epochs: float) -> DataLoader:
        source = MixtureSource("a", documents, 1.0, max_epochs=max_epochs)
        return loader(mixture_of(source, packing=packing), config)

    def read(data: DataLoader) -> Counter[str]:
        names: Counter[str] = Counter()
        while (batch := data.next_batch()) is not None:
            names.update(set(batch.documents))
            data.commit(batch)
        return names

    first = build(1.0)
    assert set(read(first)) == {f"a:{i}" for i in range(12)}
    saved = json.loads(json.dumps({"identity": first.identity(), "streams": first.state_dict()}))
    again = build(3.0)
    assert again.source_differences(saved) == ([], [])
    again.load_state_dict(saved["streams"])
    found = read(again)
    assert set(found) == {f"a:{i}" for i in range(12)} and again.progress()["a"][1] == pytest.approx(3)
    other = loader(mixture_of(MixtureSource("a", documents, 2.0, max_epochs=1.0)), config)
    assert other.source_differences(saved) == ([], ["data.sources.a.weight is 1.0 there and 2.0 here"])
    for data in (first, again):
        data.close()


def test_more_streams_than_documents_train_to_the_end() -> None:
    source = mixture_of(MixtureSource("a", Texts(["only one document"]), 1.0, max_epochs=1.0))
    steps, _ = train(source, data_config(rows=ROWS, streams=8), 1, 1000, {})
    assert len(steps) == 2
    assert sum(target != IGNORED for rows in steps for row in rows for target in row[1]) == 16


def test_a_load_verifies_the_hash_of_the_tokens() -> None:
    """The last row of every stream is made again and must be the one that was trained on."""
    documents = mixture_of(texts(*[30] * 50))
    data = loader(documents, data_config())
    data.commit(batches_of(data, 4)[-1])
    state = json.loads(json.dumps(data.state_dict()))
    data.close()
    assert all(part["before"] is not None and part["digest"] != part["before"]["digest"] for part in state.values())
    loader(documents, data_config()).load_state_dict(state)
    changed = {s: {**part, "digest": "0" * 16} for s, part in state.items()}
    with pytest.raises(ConfigError, match="stream 0 reads other tokens"):
        loader(documents, data_config()).load_state_dict(changed)
    assert token_hash(state) != token_hash(changed)
    other = mixture_of(Texts(text.replace("a", "b") for text in texts(*[30] * 50)))
    with pytest.raises(ConfigError, match="restore the files"):
        loader(other, data_config()).load_state_dict(state)


def test_progress_counts_tokens_and_passes() -> None:
    """Of a document under way only the part that is used counts: 64 streams do not make 64 epochs of one document."""
    documents = mixture_of(MixtureSource("one", Texts(["x" * 999]), 1.0), MixtureSource("many", texts(*[9] * 100), 1.0))
    data = loader(documents, data_config(seq_len=9, rows=64, local=64))
    assert data.progress() == {"one": [0, 0.0], "many": [0, 0.0]}
    data.commit(batches_of(data, 40)[-1])
    progress = data.progress()
    for name, (tokens, size) in {"one": (12800, 1000), "many": (12800, 1000)}.items():
        assert progress[name][0] == pytest.approx(tokens, rel=0.05)
        assert progress[name][1] == pytest.approx(progress[name][0] / size), "tokens over tokens of an epoch"


def test_identity_tells_what_would_change_the_documents() -> None:
    base = loader(mixture_of(*MIXTURE), data_config()).identity()
    assert json.loads(json.dumps(base)) == base
    changed = [
        loader(mixture_of(*MIXTURE), data_config(seq_len=9)),
        loader(mixture_of(*MIXTURE), data_config(streams=2)),
        loader(mixture_of(*MIXTURE, seed=2), data_config()),
        loader(mixture_of(*MIXTURE, holdout_fraction=0.1), data_config()),
        loader(mixture_of(*MIXTURE[::-1]), data_config()),
        loader(mixture_of(MIXTURE[0]), data_config()),
        loader(mixture_of(MIXTURE[0], MixtureSource("b", MIXTURE[1].documents, 1.0)), data_config()),
    ]
    assert all(other.identity() != base for other in changed)
    assert loader(mixture_of(*MIXTURE), data_config(local=4, prefetch=2)).identity() == base


class Failing(Texts):
    """Documents of which one cannot be read."""

    def __getitem__(self, index: Any) -> Any:
        if index == 7:
            raise ConfigError("data source 'mine': document 7 is broken")
        return super().__getitem__(index)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_error_of_documents_arrives_unchanged(prefetch: int) -> None:
    data = loader(mixture_of(Failing(texts(*[60] * 8))), data_config(prefetch=prefetch))
    with pytest.raises(ConfigError) as caught:
        for _ in range(100):
            assert data.next_batch()
    assert caught.value.problems == ["data source 'mine': document 7 is broken"]
    with pytest.raises(AssertionError, match="failed before"):
        data.next_batch()  # never "spent"
    data.close()


def test_an_error_on_one_rank_reaches_all() -> None:
    """The first rank of a machine is the one that prints."""

    def run(world: World) -> list[str]:
        documents = texts(*[60] * 8)
        data = loader(mixture_of(documents if world.rank == 0 else Failing(documents)), data_config(prefetch=1), world)
        with pytest.raises(ConfigError) as caught:
            batches_of(data, 100)
        data.close()
        return caught.value.problems

    assert on_ranks(4, run) == [["data source 'mine': document 7 is broken"]] * 4


def test_closing_ends_the_thread() -> None:
    before = threading.active_count()
    for _ in range(3):
        data = loader(mixture_of(*MIXTURE), data_config(prefetch=2))
        data.next_batch()
        data.close()
        data.close()
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


@pytest.mark.parametrize("end", ["", "raise RuntimeError('on purpose')", "sys.exit(3)"])
def test_a_process_ends_while_batches_are_prepared(tmp_path: Path, end: str) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "many words " * 20_000}) + "\n")
    script = f"""
import sys
from data_helpers import *
from titan_pt.config.schema.job_config import Source
documents = open_one(Source(name="mine", path={str(tmp_path / "a.jsonl")!r}), cache_dir={str(tmp_path)!r})
data = loader(mixture_of(documents), data_config(rows=64, seq_len=4096, prefetch=50))
assert data.next_batch()
{end}
"""
    started = time.monotonic()
    command = [sys.executable, "-c", script]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == {"": 0, "s": 3, "r": 1}[end[:1]], done.stderr
    assert time.monotonic() - started < 30


def mixture_config(**data: Any) -> JobConfig:
    return JobConfig(data=Data(**data), validation=Validation(holdout_fraction=0.5))


def test_a_failing_source_on_one_rank_reaches_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ranks on another machine may lack a file; none of them may go on without the source."""
    config = mixture_config(sources=[Source(name="mine", path="x"), Source(name="yours", path="y")])
    prints = {0: "same", 1: "same"}

    def open_source(source: Source, *_options: Any) -> Texts:
        rank = int(threading.current_thread().name[-1])
        if prints[rank] == "gone":
            raise ConfigError(f"data source {source.name!r}: gone")
        documents = texts(5, 6)
        documents.fingerprint = prints[rank]
        return documents

    def run(world: ThreadWorld) -> Any:
        threading.current_thread().name = f"rank {world.rank}"
        try:
            return [source.name for source in open_mixture(config.data.sources, config, world)]
        except ConfigError as error:
            return error.problems

    monkeypatch.setattr(opening, "open_source", open_source)
    monkeypatch.setattr(opening, "list_source", lambda *_, **__: None)
    assert on_ranks(2, run) == [["mine", "yours"]] * 2
    for rank in (0, 1):
        prints[rank] = "gone"
        assert on_ranks(2, run) == [["data source 'mine': gone", "data source 'yours': gone"]] * 2
        prints[rank] = "same"
    prints[1] = "other"
    (problems, same) = on_ranks(2, run)
    assert problems == same and len(problems) == 2
    assert problems[0].startswith("data source 'mine': rank 1 finds other documents than rank 0")


def test_build_dataloader(tmp_path: Path) -> None:
    split = TokenizedMixture([], ByteTokenizer(), 5, 0.5)
    held_out = next(text for i in range(100) if not split.has_text(text := f"text {i}"))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(20)))
    (tmp_path / "b.jsonl").write_text((json.dumps({"text": held_out}) + "\n") * 20)

    def build(name: str, **source: Any) -> DataLoader:
        source["path"] = str(tmp_path / f"{name}*.jsonl")
        config = mixture_config(sources=[Source(name=name, **source)], cache_dir=str(tmp_path / "cache"), seed=5)
        return build_dataloader(config, ByteTokenizer(), ThreadWorld(), plan_run_size(config, 1))

    data = build("a")
    assert (data.mixture.seed, data.mixture.holdout_fraction, len(data.mixture.sources[0].documents)) == (5, 0.5, 20)
    with pytest.raises(ConfigError, match=r"'c': .* matches no file"):
        build("c")
    for epochs in (None, 1.0):  # told before the first step, also where streams could just end
        with pytest.raises(ConfigError, match="'b': every document is empty or not outside the held-out split"):
            build("b", max_epochs=epochs)
