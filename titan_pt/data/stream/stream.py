"""One logical stream: an endless, resumable sequence of packed rows.

A run has a fixed number of streams whatever its number of ranks. Which document comes next is a function of a few
numbers (`order.py`), so that the streams share out every epoch, no document is lost or repeated, and a state is small.

A row is made of one source's documents, laid end to end and cut, or chosen so that they fit; which source comes next
is decided row by row, so that the shares of the mixture hold from the first steps on, however long the documents are.
"""

import hashlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from titan_pt.config.errors import ConfigError
from titan_pt.data.permutation import keyed_hash
from titan_pt.data.sources.prepared import PreparedDocuments
from titan_pt.data.stream.mixture import TokenizedMixture
from titan_pt.data.stream.order import RowOrder
from titan_pt.data.stream.packing import POOL, best_fit


@dataclass(eq=False)
class Piece:
    """Tokens of one document that are not in a row yet."""

    source: int
    place: int
    document: str
    tokens: np.ndarray
    bytes_per_token: float
    targets: np.ndarray | None = None
    """Which tokens are learnt; None: all."""
    start: int = 0

    @cached_property
    def digest(self) -> str:
        """Of all its tokens."""
        return _hash("", self.tokens)

    def state(self) -> list[int]:
        """What finds it again, and how far it is read."""
        return [self.source, self.place, self.start, len(self.tokens)]


@dataclass(frozen=True)
class Row:
    """seq_len + 1 tokens; `positions` count from 0 in each document of the row, `sources` is each token's source."""

    tokens: np.ndarray
    targets: np.ndarray
    """Whether each token is learnt; the row's first cannot be, for nothing predicts it."""
    positions: np.ndarray
    sources: np.ndarray
    documents: tuple[str, ...]
    num_tokens: int
    """Tokens before the padding; only the last row of a finite stream has any."""
    num_bytes: float
    """UTF-8 bytes of the predicted tokens (all but the row's first)."""

    @property
    def num_targets(self) -> int:
        """Tokens that are predicted and learnt."""
        return int(self.targets[1:].sum())


def token_hash(states: Mapping[str, Any]) -> str:
    """One hash of all tokens that all streams gave, in their order."""
    digests = "".join(states[s]["digest"] for s in sorted(states, key=int))
    return hashlib.blake2b(digests.encode(), digest_size=8).hexdigest()


def padding_row(size: int, eos_id: int) -> Row:
    """A row of `size` tokens that predicts nothing."""
    zeros = np.zeros(size, dtype=np.int64)
    return Row(np.full(size, eos_id, dtype=np.int64), zeros.astype(bool), zeros, zeros, (), 0, 0.0)


@dataclass
class Stream:
    """Stream number `index` of `num_streams`. Iterating gives rows until every source is spent."""

    corpus: TokenizedMixture
    index: int
    num_streams: int
    seq_len: int

    def __post_init__(self) -> None:
        count = len(self.corpus.sources)
        self.tokens = [0] * count
        """Tokens in rows so far, by source."""
        self.orders = [self.corpus.order(source, self.index, self.num_streams) for source in self.corpus.sources]
        self.carry: list[list[Piece]] = [[] for _ in range(count)]
        """Documents under way, by the source whose rows they go to."""
        self.skipped = [0] * count
        """Documents that the encoder left out so far, by source."""
        self.lost = [0] * count
        """Documents of row groups that were given up."""
        self.padding = 0
        """Tokens of rows that are no document's: the gaps of best-fit packing, the ends of spent sources."""
        self.digest = ""
        # Streams start at different points of the mixture's cycle; else all would read the same source at once.
        self._phase = [
            keyed_hash(f"{self.corpus.seed}/{self.index}".encode(), source.name.encode()) / 2**64
            for source in self.corpus.sources
        ]

    def next_row(self, *, partial: bool = False) -> Row | None:
        """The next row; None when the sources are spent. With `partial` what is left then becomes a padded row."""
        needed = self.seq_len + 1
        live = set(range(len(self.carry)))
        while live:
            chosen = self._furthest_behind(live)
            if self._fill(chosen, needed):
                return self._cut(chosen, needed)
            live.remove(chosen)
            self.corpus.tell_spent(chosen)
            if live:  # the rest of a spent source goes before another's documents
                self.carry[min(live)][:0] = self.carry[chosen]
                self.carry[chosen] = []
        last = next((d for d, pieces in enumerate(self.carry) if _length(pieces) > 1), None)
        return self._cut(last, needed) if partial and last is not None else None

    def __iter__(self) -> Iterator[Row]:
        while (row := self.next_row(partial=True)) is not None:
            yield row

    def state_dict(self) -> dict[str, Any]:
        """JSON: positions in the sources, the documents begun but not used up, a hash of all rows so far."""
        return {
            "tokens": list(self.tokens),
            "padding": self.padding,
            "skipped": list(self.skipped),
            "lost": list(self.lost),
            "draws": [order.draws for order in self.orders],
            "orders": [order.state_dict() for order in self.orders],
            "carry": [[piece.state() for piece in pieces] for pieces in self.carry],
            "carry_hash": self._carry_hash(),
            "digest": self.digest,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the state was taken.

        Raises:
            ConfigError: the documents under way read differently now.
        """
        self.tokens, self.padding, self.digest = list(state["tokens"]), state["padding"], state["digest"]
        self.skipped, self.lost = list(state["skipped"]), list(state["lost"])
        for order, draws, order_state in zip(self.orders, state["draws"], state["orders"], strict=True):
            order.load_state_dict(draws, order_state)
        self.carry = [[self._reread(*place) for place in places] for places in state["carry"]]
        if self._carry_hash() != state["carry_hash"]:
            names = ", ".join(piece.document for pieces in self.carry for piece in pieces)
            raise ConfigError(
                f"data: {names} read differently than when the checkpoint was written; restore the files and the "
                'tokenizer, or start the data anew with checkpoint.exclude_from_loading = ["data"]'
            )

    def repeat_last_row(self, state: dict[str, Any]) -> None:
        """Load a state that has the one `before` its last row, and check that the row comes out as it did.

        Raises:
            ConfigError: it does not.
        """
        before = state["before"]
        after = {key: value for key, value in state.items() if key != "before"}
        if before is None:
            self.load_state_dict(after)
            return
        self.load_state_dict(before)
        self.next_row(partial=True)
        if self.state_dict() != after:
            raise ConfigError(
                f"data: stream {self.index} reads other tokens (hash {self.digest}) than when the checkpoint was "
                f"written ({state['digest']}); restore the files and the tokenizer, or start the data anew with "
                'checkpoint.exclude_from_loading = ["data"]'
            )

    def _reread(self, source: int, place: int, start: int, _length: int) -> Piece:
        piece = self._read(source, place)
        if piece is None:
            name = self.corpus.sources[source].name
            raise ConfigError(f"data: a document of {name!r} that the checkpoint was in is gone; restore the files")
        piece.start = start
        return piece

    def _carry_hash(self) -> str:
        digests = "".join(piece.digest for pieces in self.carry for piece in pieces)
        return hashlib.blake2b(digests.encode(), digest_size=8).hexdigest()

    def _furthest_behind(self, live: set[int]) -> int:
        """The deficit rule: the source that lacks most of its share of the tokens, in rows."""
        weights = sum(self.corpus.sources[d].weight for d in live)
        rows = {d: self.tokens[d] / (self.seq_len + 1) for d in live}
        total = sum(rows.values()) + 1
        return max(live, key=lambda d: (self.corpus.sources[d].weight / weights * total - rows[d] + self._phase[d], -d))

    def _fill(self, d: int, needed: int) -> bool:
        """Draw documents of a source until there is a row of them; False when it is spent before."""
        if self.corpus.packing == "best_fit":
            while len(self.carry[d]) < POOL and (piece := self._next_document(d)) is not None:
                self.carry[d].append(piece)
            return bool(self.carry[d])
        have = _length(self.carry[d])
        while have < needed:
            piece = self._next_document(d)
            if piece is None:
                return False
            self.carry[d].append(piece)
            have += len(piece.tokens)
        return True

    def _next_document(self, d: int) -> Piece | None:
        source, misses = self.corpus.sources[d], 0
        while (place := self.orders[d].next()) is not None:
            if misses == len(source.documents):  # bad luck, or does it have none?
                self.corpus.require_documents(source)
            piece = self._read(d, place)
            if piece is not None and len(piece.tokens):
                return piece
            self.skipped[d] += piece is not None
            misses += 1
        return None

    def _read(self, d: int, place: int) -> Piece | None:
        """The document of a place, tokenised; None where it is lost, empty, or not on this side of the split.

        Without tokens where the encoder leaves it out.
        """
        source, order = self.corpus.sources[d], self.orders[d]
        if isinstance(source.documents, PreparedDocuments):
            assert isinstance(order, RowOrder)
            return self._read_prepared(d, place, order.number(place), source.documents)
        number, text = order.read(place)
        self.lost[d] += text is None
        if not text or not (source.by_unit or self.corpus.is_mine(text)):
            return None
        found = self.corpus.encode(source, number, text)
        return Piece(d, place, f"{source.name}:{number}", found.tokens, found.bytes_per_token, found.targets)

    def _read_prepared(self, d: int, place: int, number: int, documents: PreparedDocuments) -> Piece | None:
        tokens = documents.tokens(number)
        if not len(tokens) or not self.corpus.has_hash(documents.holdout_hash(number)):
            return None
        ratio = documents.num_bytes(number) / max(1, len(tokens) - 1)
        return Piece(d, place, f"{self.corpus.sources[d].name}:{number}", tokens, ratio)

    def _chosen(self, d: int, size: int) -> list[Piece]:
        """The documents of the next row, in their order."""
        pieces = self.carry[d]
        lengths = [len(piece.tokens) - piece.start for piece in pieces]
        if self.corpus.packing == "best_fit":
            return [pieces[i] for i in best_fit(lengths, size)]
        ends = itertools.accumulate(lengths, initial=0)
        return [piece for piece, before in zip(pieces, ends, strict=False) if before < size]

    def _cut(self, d: int, size: int) -> Row:
        """Take `size` tokens off the documents of a source; pad with end-of-document where they run out."""
        pieces = self._chosen(d, size)
        self.carry[d] = [piece for piece in self.carry[d] if piece not in pieces]
        tokens = np.full(size, self.corpus.tokenizer.eos_id, dtype=np.int64)
        positions, sources = np.zeros(size, dtype=np.int64), np.full(size, d, dtype=np.int64)
        targets = np.zeros(size, dtype=bool)
        documents, at, num_bytes = [], 0, 0.0
        for piece in pieces:
            end = min(len(piece.tokens), piece.start + size - at)
            count = end - piece.start
            span = slice(at, at + count)
            tokens[span] = piece.tokens[piece.start : end]
            positions[span] = np.arange(count)
            sources[span] = piece.source
            targets[span] = True if piece.targets is None else piece.targets[piece.start : end]
            # The row's first token is not predicted, and the end-of-document token has no bytes.
            predicted = int(targets[max(1, at) : span.stop].sum()) - (end == len(piece.tokens))
            num_bytes += max(0, predicted) * piece.bytes_per_token
            documents.append(piece.document)
            self.tokens[piece.source] += count
            at, piece.start = span.stop, end
            if end < len(piece.tokens):
                self.carry[d].insert(0, piece)
        self.padding += size - at
        self.digest = _hash(self.digest, tokens)
        return Row(tokens, targets, positions, sources, tuple(documents), at, num_bytes)


def _length(pieces: list[Piece]) -> int:
    return sum(len(piece.tokens) - piece.start for piece in pieces)


def _hash(before: str, tokens: np.ndarray) -> str:
    return hashlib.blake2b(before.encode() + tokens.astype("<i4").tobytes(), digest_size=8).hexdigest()
