"""Best-fit packing: no document is cut that fits a row, nothing is lost, all padding is counted, exact resume."""

import random
from collections import Counter

import numpy as np
from data_helpers import Texts, data_config, loader, mixture_of, texts, through_json
from hypothesis import given, settings
from hypothesis import strategies as st

from titan_pt.data.sources.opening import MixtureSource
from titan_pt.data.stream.packing import best_fit
from titan_pt.data.stream.resuming import load_state
from titan_pt.data.stream.stream import Stream

EOS = 256


def test_the_oldest_then_the_longest_that_fits() -> None:
    assert best_fit([3, 9, 5, 4, 2, 1], 10) == [0, 2, 4]
    assert best_fit([20, 1], 10) == [0]
    assert best_fit([10, 1], 10) == [0]


def documents_of(rows: list[np.ndarray]) -> Counter[str]:
    return Counter(
        text for row in rows for text in bytes(t if t < 256 else 0 for t in row.tolist()).decode().split("\0") if text
    )


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=80), st.integers(8, 30))
def test_nothing_is_lost_or_cut_that_fits(lengths: list[int], seq_len: int) -> None:
    documents = texts(*lengths)
    source = MixtureSource("a", documents, 1.0, max_epochs=1.0)
    stream = Stream(mixture_of(source, packing="best_fit"), 0, 1, seq_len)
    rows = list(stream)
    whole = Counter(text for text in documents if len(text) + 1 <= seq_len + 1)
    found = documents_of([row.tokens[: row.num_tokens] for row in rows])
    assert all(found[text] >= count for text, count in whole.items())
    assert sum(row.num_tokens for row in rows) == sum(length + 1 for length in lengths) == stream.tokens[0]
    assert stream.padding == sum(seq_len + 1 - row.num_tokens for row in rows)
    for row in rows:
        starts = [i for i in range(row.num_tokens) if row.positions[i] == 0]
        assert starts[0] == 0 and all(row.tokens[i - 1] == EOS for i in starts[1:])


def test_little_is_padded() -> None:
    rng = random.Random(1)
    documents = Texts("x" * int(rng.lognormvariate(5, 1)) + "." for _ in range(2000))
    stream = Stream(mixture_of(documents, packing="best_fit"), 0, 1, 1023)
    for _ in range(200):
        stream.next_row()
    assert stream.padding / (200 * 1024) < 0.02


def test_a_restored_stream_goes_on_exactly() -> None:
    documents = mixture_of(texts(*range(1, 60)), texts(*range(20, 50), name="b"), packing="best_fit")
    for before in (0, 1, 7, 20):
        stream = Stream(documents, 1, 4, 32)
        for _ in range(before):
            stream.next_row()
        state = through_json(stream.state())
        again = Stream(documents, 1, 4, 32)
        load_state(again, state)
        for _ in range(15):
            left, right = stream.next_row(), again.next_row()
            assert left and right and np.array_equal(left.tokens, right.tokens)
            assert left.documents == right.documents
        assert stream.state() == again.state()


def test_padding_is_no_target() -> None:
    data = loader(mixture_of(texts(*[20] * 50), packing="best_fit"), data_config(seq_len=31))
    batch = data.next_batch()
    assert batch is not None and batch.num_targets == 8 * 20
    micro = batch.micro_batches[0]
    assert (micro.targets_BL[:, 20:] == -100).all() and (micro.targets_BL[:, :20] >= 0).all()
    assert data.identity()["packing"] == "best_fit"
    data.close()
