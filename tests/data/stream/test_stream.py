"""Streams: every document of an epoch once, exact shares, exact accounts of tokens and bytes, exact resume."""

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import pytest
from data_helpers import Texts, encoded, mixture_of, texts, through_json
from hypothesis import given, settings
from hypothesis import strategies as st

from titan_pt.config.errors import ConfigError
from titan_pt.data.sources.opening import MixtureSource
from titan_pt.data.stream.mixture import TokenizedMixture
from titan_pt.data.stream.resuming import load_state
from titan_pt.data.stream.row import PackedRow
from titan_pt.data.stream.stream import Stream

EOS = 256


def streams(documents: TokenizedMixture, count: int, seq_len: int = 8) -> list[Stream]:
    return [Stream(documents, index, count, seq_len) for index in range(count)]


def documents_of(rows: Iterable[PackedRow]) -> list[str]:
    """The documents in a stream's rows; those of a source follow one another, whatever rows come between."""
    by_source: dict[int, list[int]] = {}
    for row in rows:
        for token, source in zip(row.tokens[: row.num_tokens], row.sources, strict=False):
            by_source.setdefault(int(source), []).append(int(token))
    parts = [
        list(part)
        for tokens in by_source.values()
        for is_end, part in itertools.groupby(tokens, lambda token: token == EOS)
        if not is_end
    ]
    return [bytes(part).decode() for part in parts]


def rows_of(stream: Stream, count: int) -> list[PackedRow]:
    """The stream's next rows."""
    return [row for _ in range(count) if (row := stream.next_row())]


def drawn(stream: Stream, count: int) -> list[str]:
    """The stream's next documents of its first source."""
    pieces = [stream._next_document(0) for _ in range(count)]
    return [bytes(piece.tokens[:-1].tolist()).decode() for piece in pieces if piece]


@pytest.mark.parametrize("count", [1, 4, 8])
@pytest.mark.parametrize("size", [1, 3, 8, 40, 61])
def test_an_epoch_has_every_document_once(count: int, size: int) -> None:
    documents = texts(*[10 + i for i in range(size)])
    all_streams = streams(mixture_of(documents), count)
    # Enough of each stream that every one is in the fourth epoch.
    draws = [drawn(stream, 4 * size // count + 4) for stream in all_streams]
    merged = [text for turn in zip(*draws, strict=True) for text in turn]
    epochs = [merged[i * size : (i + 1) * size] for i in range(4)]
    for epoch in epochs:
        assert sorted(epoch) == sorted(documents)
    if size >= 8:
        assert len({tuple(epoch) for epoch in epochs}) == 4, "each epoch has its own order"


def test_the_order_depends_on_seed_and_name_alone() -> None:
    documents = texts(*[20] * 30)

    def order(seed: int, name: str, others: int = 0) -> list[str]:
        mixture = [MixtureSource(name, documents, 1.0)]
        mixture += [MixtureSource(f"other{i}", documents, 1.0) for i in range(others)]
        return drawn(Stream(mixture_of(*mixture, seed=seed), 0, 1, 8), 30)

    assert order(1, "a") == order(1, "a", others=2)
    assert order(1, "x" * 200) == order(1, "x" * 200), "a name may be longer than a key"
    assert len({tuple(o) for o in (order(1, "a"), order(2, "a"), order(1, "b"), order(1, "x" * 200))}) == 4


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any),
    st.lists(st.integers(0, 40), max_size=12),
    st.sampled_from([1, 2, 4]),
    st.integers(1, 20),
    st.sampled_from([0.3, 1.0, 2.0, 2.5]),
)
def test_every_token_of_a_finite_mixture_comes_once(
    first: list[int], second: list[int], count: int, seq_len: int, epochs: float
) -> None:
    sources = [
        MixtureSource("a", texts(*first, name="a"), 1.0, max_epochs=epochs),
        MixtureSource("b", texts(*second, name="b"), 3.0, max_epochs=1.0),
    ]
    if not any(second):
        sources.pop()
    expected: Counter[str] = Counter()
    for source in sources:
        draws = [
            draw
            for stream in streams(mixture_of(source), count)
            for draw in iter(lambda stream=stream: stream._next_document(0), None)
        ]
        assert source.max_epochs != 1.0 or len(draws) == sum(1 for text in source.documents if text)
        expected.update(bytes(draw.tokens[:-1].tolist()).decode() for draw in draws)
    seen: Counter[str] = Counter()
    for stream in streams(mixture_of(*sources), count, seq_len):
        rows = list(stream)
        assert all(len(row.tokens) == seq_len + 1 for row in rows)
        assert all(row.num_tokens == seq_len + 1 for row in rows[:-1]), "only the last row is padded"
        seen.update(documents_of(rows))
        left = sum(len(piece.tokens) - piece.start for pieces in stream.carry for piece in pieces)
        assert left <= 1, "at most a last end-of-document, which predicts nothing"
        assert sum(stream.tokens) == sum(row.num_tokens for row in rows)
        assert stream.next_row(partial=True) is None
    assert seen == expected


@pytest.mark.parametrize(
    ("weights", "lengths"),
    [
        ((1.0, 1.0), ((10,) * 20, (10,) * 20)),
        ((0.9, 0.1), ((300, 5, 70), (2000, 1000, 3))),
        ((5.0, 3.0, 2.0), ((50,) * 9, (900,) * 5, (7,) * 30)),
    ],
)
def test_shares_of_the_mixture_hold_from_the_start(weights: tuple[float, ...], lengths: tuple[tuple[int, ...]]) -> None:
    sources = [
        MixtureSource(f"s{i}", texts(*sizes), weight)
        for i, (weight, sizes) in enumerate(zip(weights, lengths, strict=True))
    ]
    size = 16
    for stream in streams(mixture_of(*sources), 4, size - 1):
        for rows in range(1, 120):
            row = stream.next_row()
            assert row is not None and len(set(row.sources)) == 1
            for share, tokens in zip(weights, stream.tokens, strict=True):
                assert abs(tokens / size - rows * share / sum(weights)) <= 1.5
    all_streams = streams(mixture_of(*sources), 64, size - 1)
    first = Counter(int(row.sources[0]) for stream in all_streams if (row := stream.next_row()))
    for d, share in enumerate(weights):
        assert first[d] / 64 == pytest.approx(share / sum(weights), abs=0.2), "not all start with one source"


def test_others_take_the_share_of_spent_sources() -> None:
    sources = [
        MixtureSource("short", texts(*[30] * 4), 2.0, max_epochs=1.0),
        MixtureSource("b", texts(*[30] * 4), 1.0),
        MixtureSource("c", texts(*[30] * 4), 3.0),
    ]
    stream = Stream(mixture_of(*sources), 0, 1, 9)
    rows = rows_of(stream, 400)
    assert len(rows) == 400
    assert stream.tokens[0] == 4 * 31
    assert stream.tokens[2] / stream.tokens[1] == pytest.approx(3.0, rel=0.03)
    mixed = [row for row in rows if len(set(row.sources)) > 1]
    assert len(mixed) == 1 and 0 in mixed[0].sources, "its rest went into a row of another"


def test_max_epochs_is_exact_over_all_streams() -> None:
    documents = texts(*[12] * 10)
    for epochs, expected in ((0.5, 5), (1.0, 10), (2.3, 23), (1e-6, 1)):
        source = MixtureSource("a", documents, 1.0, max_epochs=epochs)
        for count in (1, 4, 16):
            found = [documents_of(stream) for stream in streams(mixture_of(source), count)]
            assert sum(map(len, found)) == expected


def test_positions_count_from_zero_in_each_document() -> None:
    documents = texts(*[3, 9, 25, 1, 14])
    for row in itertools.islice(Stream(mixture_of(documents), 0, 1, 11), 50):
        expected, position = [], 0
        for token in row.tokens:
            expected.append(position)
            position = 0 if token == EOS else position + 1
        assert row.positions.tolist() == expected
        assert len(row.documents) == 1 + sum(token == EOS for token in row.tokens[:-1])
        assert all(0 <= int(name.removeprefix("s0:")) < 5 for name in row.documents)


def test_bytes_are_those_of_the_predicted_tokens() -> None:
    documents = Texts(["abc", "é" * 5, "北京", "🤷", "x" * 30])
    for row in itertools.islice(Stream(mixture_of(documents), 0, 1, 12), 60):
        assert row.num_bytes == sum(token != EOS for token in row.tokens[1:])
    source = MixtureSource("a", documents, 1.0, max_epochs=1.0)
    (row,) = Stream(mixture_of(source), 0, 1, 500)
    first = bytes(row.tokens.tolist()[: list(row.tokens).index(EOS)]).decode()
    assert row.num_bytes == sum(len(text.encode()) for text in documents) - 1
    assert first in documents


class CharacterTokenizer:
    """A token for every two characters, so that tokens are not bytes."""

    vocab_size, eos_id, special_ids, fingerprint = 257, EOS, {"eos": EOS}, "pairs"

    def encode(self, text: str) -> list[int]:
        return [ord(text[i]) % 256 for i in range(0, len(text), 2)]

    def decode(self, ids: Sequence[int]) -> str:
        raise NotImplementedError


def test_bytes_are_exact_for_any_tokenizer() -> None:
    documents = Texts(["skipped first", "Größe 北京", "🤷‍♀️ and more", "last"])
    mixture = [MixtureSource("a", documents, 1.0, max_epochs=1.0)]
    tokenizer = CharacterTokenizer()
    (row,) = Stream(TokenizedMixture(mixture, tokenizer, 1), 0, 1, 100)
    starts = tokenizer.encode(documents[int(row.documents[0][2:])])
    whole = sum(len(documents[int(name[2:])].encode()) for name in row.documents)
    unpredicted = len(documents[int(row.documents[0][2:])].encode()) / len(starts)
    assert row.num_bytes == pytest.approx(whole - unpredicted)
    assert len(encoded(tokenizer, documents[0])) == 8


@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_held_out_documents_are_never_trained_on(fraction: float) -> None:
    documents = texts(*[20] * 200)
    documents += documents[:50]  # twice the same text: on one side
    sides = []
    for held_out in (False, True):
        source = MixtureSource("a", documents, 1.0, max_epochs=2.0)
        side = mixture_of(source, holdout_fraction=fraction, held_out=held_out, seed=3)
        sides.append([text for stream in streams(side, 4) for text in documents_of(stream)])
    trained, validated = sides
    assert not set(trained) & set(validated)
    assert Counter(trained) + Counter(validated) == Counter(documents * 2)
    assert len(set(validated)) / 200 == pytest.approx(fraction, abs=0.06)
    other_seed = mixture_of(MixtureSource("renamed", documents, 1.0), holdout_fraction=fraction, held_out=True, seed=9)
    assert {text for text in documents if other_seed.has_text(text)} == set(validated), "a new seed moves nothing"


def test_no_split_means_everything() -> None:
    documents = texts(*[20] * 20)
    assert all(mixture_of(documents).has_text(text) for text in documents)
    assert not any(mixture_of(documents, held_out=True).has_text(text) for text in documents)


@pytest.mark.parametrize("count", [1, 8, 64])
def test_a_single_document_is_enough_for_many_streams(count: int) -> None:
    for stream in streams(mixture_of(Texts(["one document"])), count):
        assert documents_of(rows_of(stream, 9))[0] == "one document"


@pytest.mark.parametrize("count", [1, 2, 8])
def test_few_trainable_documents_among_many_are_found(count: int) -> None:
    """A stream sees other documents in every epoch; it may miss the only good one for a long time."""
    documents = Texts(["", "", "good", "", "", ""])
    for stream in streams(mixture_of(documents), count):
        assert documents_of(rows_of(stream, 60)).count("good") > 50


def test_a_source_without_trainable_documents_is_told() -> None:
    reason = "'s0': every document is empty or not outside the held-out split"
    for broken in (mixture_of(Texts(["", ""])), mixture_of(texts(5, 5, 5), holdout_fraction=1.0)):
        with pytest.raises(ConfigError, match=reason):
            Stream(broken, 1, 4, 8).next_row()
        with pytest.raises(ConfigError, match=reason):
            broken.require_documents(broken.sources[0])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 40), st.integers(1, 30), st.sampled_from([None, 1.0, 2.0]), st.integers(0, 3))
def test_a_restored_stream_goes_on_exactly(before: int, seq_len: int, epochs: float | None, index: int) -> None:
    mixture = mixture_of(
        MixtureSource("a", texts(3, 50, 0, 7, 120, 31, name="a"), 2.0, epochs),
        MixtureSource("b", texts(9, 9, 80, name="b"), 1.0, epochs),
        holdout_fraction=0.2,
    )
    stream = Stream(mixture, index, 4, seq_len)
    for _ in range(before):
        stream.next_row(partial=True)
    state = through_json(stream.state())
    restored = Stream(mixture, index, 4, seq_len)
    load_state(restored, state)
    assert restored.state() == state
    for _ in range(20):
        left, right = stream.next_row(partial=True), restored.next_row(partial=True)
        assert (left is None) == (right is None)
        if left and right:
            assert np.array_equal(left.tokens, right.tokens) and np.array_equal(left.positions, right.positions)
            assert (left.documents, left.num_bytes) == (right.documents, right.num_bytes)
    assert stream.state() == restored.state()


def test_documents_that_changed_since_the_checkpoint_are_told() -> None:
    documents = texts(30, 40, 50, 60)
    stream = Stream(mixture_of(documents), 0, 1, 16)
    stream.next_row()
    state = stream.state()
    name = stream.carry[0][0].document
    other = Texts(text.upper() for text in documents)
    with pytest.raises(ConfigError, match=f"data: {name} read differently than when the checkpoint was written"):
        load_state(Stream(mixture_of(other), 0, 1, 16), state)
    with pytest.raises(ConfigError, match="is gone; restore the files"):
        load_state(Stream(mixture_of(Texts([""] * 4)), 0, 1, 16), state)


def test_a_huge_document_is_one_document() -> None:
    """Its state is as small as any, and its tokens are held as numbers of four bytes."""
    stream = Stream(mixture_of(Texts(["x" * 3_000_000])), 0, 1, 1023)
    rows = rows_of(stream, 100)
    assert all(row.documents == ("s0:0",) for row in rows)
    assert len(json.dumps(stream.state().to_json())) < 300
    assert stream.carry[0][0].tokens.nbytes < 13e6
