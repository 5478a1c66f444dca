"""The truth table: what weights and caps mean in tokens and passes, and the warnings nobody should miss."""

import pytest
from data_helpers import mixture_of, texts

from titan_pt.data.sources.opening import MixtureSource
from titan_pt.data.truth_table import SourceShare, lines, plan_mixture, share_out, warnings


def test_others_give_the_tokens_above_a_cap() -> None:
    assert share_out(100.0, [0.85, 0.15], [float("inf"), 5.0]) == [95.0, 5.0]
    assert share_out(100.0, [1.0, 1.0, 2.0], [10.0, float("inf"), float("inf")]) == [10.0, 30.0, 60.0]
    assert share_out(100.0, [1.0, 1.0], [10.0, 20.0]) == [10.0, 20.0]
    assert share_out(100.0, [3.0, 1.0], [float("inf")] * 2) == [75.0, 25.0]
    assert share_out(90.0, [1.0, 1.0, 1.0], [29.0, 30.5, float("inf")]) == [29.0, 30.5, 30.5]


def test_the_table_counts_tokens_and_passes() -> None:
    documents = mixture_of(
        MixtureSource("web", texts(*[99] * 1000), 0.85), MixtureSource("medqa", texts(*[49] * 10), 0.15, max_epochs=4.0)
    )
    web, medqa = plan_mixture(documents, 50_000)
    assert (web.tokens_per_epoch, medqa.tokens_per_epoch) == (100_000, 500)
    assert (medqa.tokens, medqa.epochs, medqa.wished_epochs) == (2000, 4.0, 15.0)
    assert web.tokens == 48_000
    table = lines([web, medqa], 50_000)
    assert table[2].split() == ["medqa", "4.00%", "4", "4", "2,000", "500", "10"]
    large = SourceShare("arithmetic_plain", 100, 10_404_757, 1, 1_638_400, None)
    assert len(lines([large], 4_096_000)[0]) <= 72, "a panel of 80 columns has all of it"
    (warning,) = warnings([web, medqa], 50_000)
    assert "15.0% of the tokens = 15 epochs, above max_epochs = 4" in warning and "gives 4.00% of all" in warning
    assert "spent after the first 13,333 tokens" in warning


@pytest.mark.parametrize(
    ("weight", "cap", "word"), [(1.0, None, "no max_epochs"), (1.0, 2.0, "the run will end there")]
)
def test_loud_warnings(weight: float, cap: float | None, word: str) -> None:
    documents = mixture_of(MixtureSource("small", texts(*[9] * 10), weight, cap))
    found = warnings(plan_mixture(documents, 10_000), 10_000)
    assert any(word in warning for warning in found)
    assert not any("other sources" in warning for warning in found), "there are none"
    assert not warnings(plan_mixture(documents, 150), 150)
