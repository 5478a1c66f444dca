"""Truth table of a mixture, logged before a run: tokens, passes and share of every source."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from titan_pt.data.sources.documents import are_tokens, sample_numbers
from titan_pt.data.sources.opening import MixtureSource
from titan_pt.data.stream.mixture import TokenizedMixture

# Beyond this many passes over the same text a language model learns little that is new (Muennighoff et al. 2023,
# "Scaling Data-Constrained Language Models", section 5: returns diminish past 4 epochs and vanish near 16 to 40).
MANY_EPOCHS = 16.0
_SAMPLE = 64
ENOUGH = 0.999  # of the tokens: shares are rounded


@dataclass(frozen=True)
class SourceShare:
    """Share of one source in the tokens of a whole run."""

    name: str
    documents: int
    tokens_per_epoch: float
    """Tokens of one pass, estimated from a sample of the documents."""
    wished_tokens: float
    """Tokens that the weight alone would give."""
    tokens: float
    """Tokens that the source gives once every source is held to its cap."""
    max_epochs: float | None
    generated: bool = False
    """Whether a rule makes its documents, which may then be read often."""

    @property
    def epochs(self) -> float:
        """Passes over the source."""
        return self.tokens / self.tokens_per_epoch

    @property
    def wished_epochs(self) -> float:
        """Passes that its weight alone would mean."""
        return self.wished_tokens / self.tokens_per_epoch


def plan_mixture(mixture: TokenizedMixture, tokens: int) -> list[SourceShare]:
    """Share out the tokens of a run: by weight, and what a capped source cannot give goes to the others."""
    sizes = [_tokens_per_epoch(mixture, source) for source in mixture.sources]
    caps = [
        float("inf") if source.max_epochs is None else source.max_epochs * size
        for source, size in zip(mixture.sources, sizes, strict=True)
    ]
    weights = [source.weight for source in mixture.sources]
    given = share_out(float(tokens), weights, caps)
    return [
        SourceShare(
            name=source.name,
            documents=len(source.documents),
            tokens_per_epoch=size,
            wished_tokens=tokens * source.weight / sum(weights),
            tokens=got,
            max_epochs=source.max_epochs,
            generated=getattr(source.documents, "generated", False),
        )
        for source, size, got in zip(mixture.sources, sizes, given, strict=True)
    ]


def share_out(total: float, weights: Sequence[float], caps: Sequence[float]) -> list[float]:
    """Amounts in proportion to the weights, none above its cap; less than the total where all are capped."""
    given = [0.0] * len(weights)
    live = set(range(len(weights)))
    while live:
        left = total - sum(given[d] for d in range(len(weights)) if d not in live)
        whole = sum(weights[d] for d in live)
        full = {d for d in live if left * weights[d] / whole >= caps[d]}
        for d in full or live:
            given[d] = caps[d] if full else left * weights[d] / whole
        live = live - full if full else set()
    return given


def lines(shares: Sequence[SourceShare], tokens: int) -> list[str]:
    """The truth table, a line each; what a narrow terminal leaves out is at the right."""
    rows = [["source", "share", "epochs", "cap", "tokens", "per epoch", "documents"]]
    for source in shares:
        cap = "-" if source.max_epochs is None else f"{source.max_epochs:g}"
        counts = (f"{count:,.0f}" for count in (source.tokens, source.tokens_per_epoch, source.documents))
        rows.append([source.name, f"{source.tokens / tokens:.2%}", f"{source.epochs:.3g}", cap, *counts])
    first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    notes = ["", *("  generated" * source.generated for source in shares)]
    return [
        "  ".join([f"{name:<{first}}", *(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))]) + note
        for (name, *cells), note in zip(rows, notes, strict=True)
    ]


def warnings(shares: Sequence[SourceShare], tokens: int) -> list[str]:
    """Warnings about sources that end early, repeat too often or do not suffice."""
    enough = sum(source.tokens for source in shares) >= ENOUGH * tokens
    if enough and all(s.wished_epochs <= (s.max_epochs or (math.inf if s.generated else MANY_EPOCHS)) for s in shares):
        return []
    from titan_pt.data.unfit_sources import warnings_of

    return warnings_of(shares, tokens, ENOUGH, MANY_EPOCHS)


def _tokens_per_epoch(mixture: TokenizedMixture, source: MixtureSource) -> float:
    if are_tokens(source.documents):
        return float(source.documents.num_tokens)
    numbers = sample_numbers(source.documents, _SAMPLE)
    texts = ((number, source.documents[number]) for number in numbers)
    lengths = [len(mixture.encode(source, number, text).tokens) if text else 1 for number, text in texts]
    return len(source.documents) * max(1, sum(lengths)) / len(lengths)  # all of a sample may be left out
