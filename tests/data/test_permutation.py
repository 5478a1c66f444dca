"""The order of documents: a bijection for every size and key, even, and the same on every machine."""

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from titan_pt.data.permutation import keyed_hash, permute


def order(size: int, key: bytes) -> list[int]:
    return [permute(index, size, key) for index in range(size)]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 63, 64, 65, 255, 256, 257, 1000, 4097])
def test_every_index_is_hit_once(size: int) -> None:
    for key in (b"", b"a", bytes(64)):
        assert sorted(order(size, key)) == list(range(size))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 600), st.binary(max_size=64))
def test_a_permutation_hits_every_index_once(size: int, key: bytes) -> None:
    assert sorted(order(size, key)) == list(range(size))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 2**48), st.data())
def test_huge_sizes_need_no_table(size: int, data: st.DataObject) -> None:
    indices = data.draw(st.sets(st.integers(0, size - 1), max_size=20))
    images = {permute(index, size, b"k") for index in indices}
    assert len(images) == len(indices)
    assert all(0 <= image < size for image in images)


def places(size: int, index: int, draws: int = 3000) -> list[int]:
    counts = Counter(permute(index, size, f"key {i}".encode()) for i in range(draws))
    return [counts[image] for image in range(size)]


@pytest.mark.parametrize("size", [10, 17, 100])
def test_every_place_is_equally_likely(size: int) -> None:
    for index in {0, size // 2, size - 1}:
        counts = places(size, index)
        expected = sum(counts) / size
        chi_square = sum((count - expected) ** 2 / expected for count in counts)
        assert chi_square < size + 6 * (2 * size) ** 0.5, counts  # six standard deviations


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6])
def test_few_documents_are_shared_out_evenly(size: int) -> None:
    """Four rounds over two or four bits are not quite random; the documents of so small a source all come anyway."""
    for index in range(size):
        counts = places(size, index)
        assert min(counts) > 0.6 * sum(counts) / size, counts


def test_every_order_of_three_comes_up() -> None:
    counts = Counter(tuple(order(3, f"key {i}".encode())) for i in range(3000))
    assert len(counts) == 6
    assert min(counts.values()) > 300, counts


def test_neighbours_are_torn_apart() -> None:
    images = order(2000, b"some key")
    close = sum(abs(a - b) < 20 for a, b in itertools.pairwise(images))
    assert close < 2 * 2000 * 40 / 2000, "as often as by chance"
    assert sum(index == image for index, image in enumerate(images)) < 10


def test_keys_give_different_orders() -> None:
    assert len({tuple(order(50, f"{seed}/{epoch}".encode())) for seed in range(5) for epoch in range(20)}) == 100


def test_the_order_never_changes() -> None:
    """A checkpoint holds numbers of documents in this order: another order would be another run."""
    assert keyed_hash(b"key", b"text") == 1665419118577146902
    assert order(10, b"42/0/python_stdlib") == [9, 7, 4, 6, 8, 2, 1, 3, 0, 5]
    assert permute(123_456, 1_000_000, b"42/0/arithmetic") == 476601


def test_an_index_outside_is_a_mistake() -> None:
    for index, size in ((-1, 5), (5, 5), (0, 0)):
        with pytest.raises(AssertionError):
            permute(index, size, b"")
