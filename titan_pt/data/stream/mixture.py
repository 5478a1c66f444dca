"""The documents that streams read: the sources of a mixture as tokens, on one side of the held-out split."""

import contextlib
import itertools
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from titan_pt.components.tokenizer import Tokenizer, name_in
from titan_pt.config.errors import ConfigError
from titan_pt.data.permutation import keyed_hash
from titan_pt.data.sources.documents import Order, OrderKey, SkipOptions, are_streamed, are_tokens, sample_rows
from titan_pt.data.sources.opening import MixtureSource
from titan_pt.data.sources.registry import DataSettings
from titan_pt.data.stream.encoding import PLAIN_TEXT, Encoded, Encoder, PlainText
from titan_pt.data.stream.order import RowOrder
from titan_pt.run.signals import until_stopped

logger = logging.getLogger("titan_pt")

_HOLDOUT_KEY = b"titan_pt holdout"  # not from the seed: a new seed must not train on what was held out


@dataclass(frozen=True)
class TokenizedMixture:
    """Sources, tokenizer and held-out split: everything a stream reads from.

    `holdout_fraction` of all documents, by a hash of their text, are `held_out`; equal texts fall on one side. Of a
    source that is read by row group whole row groups are held out: to find single texts all would have to be read.
    """

    sources: Sequence[MixtureSource]
    tokenizer: Tokenizer
    seed: int
    holdout_fraction: float = 0.0
    held_out: bool = False
    skip: SkipOptions = field(default_factory=SkipOptions)
    packing: Literal["concat", "best_fit"] = "concat"
    encoder: Encoder = PLAIN_TEXT
    spent: set[str] = field(default_factory=set)
    """Sources that are spent in a stream; each is logged once."""
    named: set[str] = field(default_factory=set)
    """Sources whose texts hold names of special tokens, which are text there; each is logged once."""

    @property
    def encoding(self) -> str:
        """Text that changes when the tokens of a text may; the tokenizer has its own."""
        special = sorted(source.name for source in self.sources if source.special_tokens)
        return self.encoder.fingerprint(self.tokenizer) + (
            f"/special_tokens of {', '.join(special)}" if special else ""
        )

    def order(self, source: MixtureSource, index: int, num_streams: int) -> Order:
        """Stream `index`'s way through a source."""
        key = OrderKey(source.name, source.max_epochs, self.seed, index, num_streams)
        if are_streamed(source.documents) and source.documents.by_row_group:
            return source.documents.order(key, self.holdout_fraction, self.held_out, self.skip)
        return RowOrder(key, source.documents)

    def has_text(self, text: str) -> bool:
        """Whether this side of the split has the document."""
        return self.has_hash(holdout_hash(text) if self.holdout_fraction else 0)

    def has_hash(self, hashed: int) -> bool:
        """Whether this side of the split has a document of this `holdout_hash`."""
        if self.holdout_fraction == 0.0:
            return not self.held_out
        return (hashed / 2**64 < self.holdout_fraction) == self.held_out

    def has(self, source: MixtureSource, number: int) -> bool:
        """Whether this side of the split has a document of a source, and it is not empty."""
        documents = source.documents
        if are_tokens(documents):
            return len(documents.tokens(number)) > 0 and self.has_hash(documents.holdout_hash(number))
        text = documents[number]
        return bool(text) and (source.by_row_group or self.has_text(text))

    def left_out(self, source: MixtureSource, number: int) -> str | None:
        """Why the encoder leaves a document out, or None."""
        if are_tokens(source.documents):
            return None
        return self.encode(source, number, source.documents[number]).left_out

    def encode(self, source: MixtureSource, number: int, text: str) -> Encoded:
        """A document of a source as tokens.

        Raises:
            ConfigError: the encoder refuses the text.
        """
        if not source.special_tokens and source.name not in self.named:
            self._note_names(source, number, text)
        try:
            if source.special_tokens:
                return self.encoder.encode(text, self.tokenizer, named=True)
            return self.encoder.encode(text, self.tokenizer)
        except ValueError as error:
            raise ConfigError(f"data source {source.name!r}, {source.describe(number)}: {error}") from error

    def _note_names(self, source: MixtureSource, number: int, text: str) -> None:
        if not isinstance(self.encoder, PlainText) and "\\u" in text:  # a record, as JSON
            with contextlib.suppress(ValueError):
                text = json.dumps(json.loads(text), ensure_ascii=False)
        name = name_in(self.tokenizer, text)
        if name is not None:
            self.named.add(source.name)
            logger.warning(
                f"data source {source.name!r}, {source.describe(number)}: holds {name!r}, which is read as text, as in "
                "all documents; special_tokens = true in its table reads names of special tokens as these tokens"
            )

    def note_spent(self, d: int) -> None:
        """Log that a source has reached its max_epochs in a stream."""
        if (name := self.sources[d].name) not in self.spent:
            self.spent.add(name)
            weight = ": its weight goes to the others there" if len(self.sources) > 1 else ""
            logger.info(f"data source {name!r} is spent in a stream{weight}")

    def require_documents(self, source: MixtureSource) -> None:
        """Raise a ConfigError if a source has no document on this side; as a rule that takes one look."""
        first, numbers = "", range(len(source.documents))
        for number in until_stopped(itertools.chain(sample_rows(source.documents), numbers)):
            if not self.has(source, number):
                continue
            reason = self.left_out(source, number)
            if reason is None:
                return
            first = first or f"; {source.describe(number)} is left out: {reason}"
        empty, side = "empty, left out" if first else "empty", "in" if self.held_out else "outside"
        raise ConfigError(
            f"data source {source.name!r}: every document is {empty} or not {side} the held-out split{first}; "
            "add documents or change validation.holdout_fraction"
        )


def tokenize_mixture(
    sources: Sequence[MixtureSource],
    settings: DataSettings,
    tokenizer: Tokenizer,
    writer: str = "0",
    encoder: Encoder = PLAIN_TEXT,
) -> TokenizedMixture:
    """The training side of the opened sources.

    Args:
        writer: name of this process in the records of skipped row groups.

    Raises:
        ConfigError: token shards were made by another tokenizer, or are of plain text where there is another encoder.
    """
    for source in sources:
        if are_tokens(source.documents):
            from titan_pt.data.stream.token_shards import check_shards

            check_shards(source, source.documents, tokenizer, encoder)
    data = settings.data
    substitute_after = data.substitute_after_seconds if data.stall_policy == "substitute" else None
    return TokenizedMixture(
        sources,
        tokenizer,
        settings.seed,
        settings.holdout_fraction,
        skip=SkipOptions(settings.folder, writer, substitute_after),
        packing=data.packing,
        encoder=encoder,
    )


def holdout_hash(text: str) -> int:
    """64 bits by which a document is held out or not, whatever the seed."""
    return keyed_hash(_HOLDOUT_KEY, text.encode("utf-8", "surrogatepass"))
