"""What streams read: the sources of a mixture, and which side of the held-out split."""

import itertools
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from titan_pt.components.tokenizer import Tokenizer
from titan_pt.config.errors import ConfigError
from titan_pt.data.permutation import keyed_hash
from titan_pt.data.remote.row_group_documents import RowGroupDocuments
from titan_pt.data.sources.prepared import PreparedDocuments
from titan_pt.data.sources.registry import Documents
from titan_pt.data.stream.encoding import PLAIN_TEXT, Encoded, Encoder
from titan_pt.data.stream.order import BlockOrder, Order, RowOrder
from titan_pt.data.stream.skip_log import SkipLog
from titan_pt.run.signals import until_stopped

logger = logging.getLogger("titan_pt")

_HOLDOUT_KEY = b"titan_pt holdout"  # not from the seed: a new seed must not train on what was held out


@dataclass(frozen=True)
class MixtureSource:
    """A source with its place in the mixture."""

    name: str
    documents: Documents
    weight: float
    max_epochs: float | None = None
    listing: dict[str, Any] | None = None
    """Its units as plain values, for other processes that open it."""

    @property
    def by_unit(self) -> bool:
        """Whether it is read, and split, unit by unit."""
        return isinstance(self.documents, RowGroupDocuments) and self.documents.by_unit

    def tell(self, number: int) -> str:
        """A document's number and, where its source knows it, its file and place there."""
        place = getattr(self.documents, "place", None)
        return f"document {number} ({place(number)})" if place else f"document {number}"

    def wait_for_ever(self) -> None:
        """From here on the loader's own limit holds, data.max_stall_seconds, of all ranks together."""
        if isinstance(self.documents, RowGroupDocuments):
            self.documents.reading.limit_seconds = math.inf


@dataclass(frozen=True)
class TokenizedMixture:
    """What a stream reads: the mixture, and which side of the held-out split.

    `holdout_fraction` of all documents, by a hash of their text, are `held_out`; equal texts fall on one side. Of a
    source that is read unit by unit whole units are held out: to find single texts all would have to be read.
    """

    sources: Sequence[MixtureSource]
    tokenizer: Tokenizer
    seed: int
    holdout_fraction: float = 0.0
    held_out: bool = False
    ledger: SkipLog = field(default_factory=SkipLog)
    substitute_after: float | None = None
    packing: Literal["concat", "best_fit"] = "concat"
    encoder: Encoder = PLAIN_TEXT
    spent: set[str] = field(default_factory=set)
    """Sources of which a stream has none left; each is told once."""

    def order(self, source: MixtureSource, index: int, num_streams: int) -> Order:
        """Stream `index`'s way through a source."""
        documents, options = source.documents, (source.max_epochs, self.seed, index, num_streams)
        if isinstance(documents, RowGroupDocuments) and documents.by_unit:
            units = documents.listing.side(self.holdout_fraction, self.held_out)
            return BlockOrder(source.name, documents, units, *options, self.ledger, self.substitute_after)
        return RowOrder(source.name, documents, *options)

    def is_mine(self, text: str) -> bool:
        """Whether this side of the split has the document."""
        return self.has_hash(holdout_hash(text) if self.holdout_fraction else 0)

    def has_hash(self, hashed: int) -> bool:
        """Whether this side of the split has a document of this `holdout_hash`."""
        if self.holdout_fraction == 0.0:
            return not self.held_out
        return (hashed / 2**64 < self.holdout_fraction) == self.held_out

    def has(self, source: MixtureSource, number: int) -> bool:
        """Whether this side of the split has a document of a source, and there is something in it."""
        documents = source.documents
        if isinstance(documents, PreparedDocuments):
            return len(documents.tokens(number)) > 0 and self.has_hash(documents.holdout_hash(number))
        text = documents[number]
        return bool(text) and (source.by_unit or self.is_mine(text))

    def left_out(self, source: MixtureSource, number: int) -> str | None:
        """Why the encoder leaves a document out."""
        if isinstance(source.documents, PreparedDocuments):
            return None
        return self.encode(source, number, source.documents[number]).left_out

    def encode(self, source: MixtureSource, number: int, text: str) -> Encoded:
        """A document of a source as tokens.

        Raises:
            ConfigError: it is not what the encoder wants.
        """
        try:
            return self.encoder.encode(text, self.tokenizer)
        except ValueError as error:
            raise ConfigError(f"data source {source.name!r}, {source.tell(number)}: {error}") from error

    def tell_spent(self, d: int) -> None:
        """Log that a source has reached its max_epochs in a stream."""
        name = self.sources[d].name
        if name not in self.spent:
            self.spent.add(name)
            logger.info(f"data source {name!r} is spent in a stream: its weight goes to the others there")

    def require_documents(self, source: MixtureSource) -> None:
        """Raise a ConfigError if a source has no document on this side; as a rule that takes one look."""
        first, numbers = "", range(len(source.documents))
        for number in until_stopped(itertools.chain(getattr(source.documents, "sample_rows", ()), numbers)):
            if not self.has(source, number):
                continue
            reason = self.left_out(source, number)
            if reason is None:
                return
            first = first or f"; {source.tell(number)} is left out: {reason}"
        empty, side = "empty, left out" if first else "empty", "in" if self.held_out else "outside"
        raise ConfigError(
            f"data source {source.name!r}: every document is {empty} or not {side} the held-out split{first}; "
            "add documents or change validation.holdout_fraction"
        )


def holdout_hash(text: str) -> int:
    """64 bits by which a document is held out or not, whatever the seed."""
    return keyed_hash(_HOLDOUT_KEY, text.encode("utf-8", "surrogatepass"))
