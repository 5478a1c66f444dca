"""One logical stream: an endless, resumable sequence of packed rows.

A run has a fixed number of streams whatever its number of ranks. Which document comes next is a function of a few
numbers (`order.py`), so that the streams share out every epoch, no document is lost or repeated, and a state is small.

A row is made of one source's documents, laid end to end and cut, or chosen so that they fit; which source comes next
is decided row by row, so that the shares of the mixture hold from the first steps on, however long the documents are.
"""

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from titan_pt.data.permutation import keyed_hash
from titan_pt.data.sources.documents import are_tokens
from titan_pt.data.stream.mixture import TokenizedMixture
from titan_pt.data.stream.order import RowOrder
from titan_pt.data.stream.row import PackedRow, Piece, hash_tokens, pack_row
from titan_pt.data.stream.state import StreamState


@dataclass
class Stream:
    """Stream number `index` of `num_streams`. Iterating gives rows until every source is spent."""

    mixture: TokenizedMixture
    index: int
    num_streams: int
    seq_len: int

    def __post_init__(self) -> None:
        sources = self.mixture.sources
        count = len(sources)
        self.tokens = [0] * count
        """Tokens in rows so far, by source."""
        self.orders = [self.mixture.order(source, self.index, self.num_streams) for source in sources]
        self.carry: list[list[Piece]] = [[] for _ in range(count)]
        """Documents under way, by the source whose rows they go to."""
        self.skipped = [0] * count
        """Documents that the encoder left out so far, by source."""
        self.lost = [0] * count
        """Documents of row groups that were given up, by source."""
        self.padding = 0
        """Tokens of rows that are no document's: the gaps of best-fit packing, the ends of spent sources."""
        self.digest = ""
        """Rolling hash of all tokens in rows so far."""
        # Streams start at different points of the mixture's cycle; else all would read the same source at once.
        key = f"{self.mixture.seed}/{self.index}".encode()
        self._phase = [keyed_hash(key, source.name.encode()) / 2**64 for source in sources]

    def next_row(self, *, partial: bool = False) -> PackedRow | None:
        """The next row; None when the sources are spent. With `partial` what is left then becomes a padded row."""
        needed = self.seq_len + 1
        live = set(range(len(self.carry)))
        while live:
            chosen = self._furthest_behind(live)
            if self._fill(chosen, needed):
                return self._cut(chosen, needed)
            live.remove(chosen)
            self.mixture.note_spent(chosen)
            if live:  # the rest of a spent source goes before another's documents
                self.carry[min(live)][:0] = self.carry[chosen]
                self.carry[chosen] = []
        last = next((d for d, pieces in enumerate(self.carry) if _tokens_left(pieces) > 1), None)
        return self._cut(last, needed) if partial and last is not None else None

    def __iter__(self) -> Iterator[PackedRow]:
        while (row := self.next_row(partial=True)) is not None:
            yield row

    def state(self) -> StreamState:
        """Positions in the sources, the documents begun but not used up, and a hash of all rows so far."""
        return StreamState(
            tokens=tuple(self.tokens),
            padding=self.padding,
            skipped=tuple(self.skipped),
            lost=tuple(self.lost),
            draws=tuple(order.draws for order in self.orders),
            orders=tuple(order.state_dict() for order in self.orders),
            carry=tuple(tuple(piece.state() for piece in pieces) for pieces in self.carry),
            carry_hash=self.carry_hash(),
            digest=self.digest,
        )

    def carry_hash(self) -> str:
        """Hash of the tokens of the documents under way."""
        digests = "".join(piece.digest for pieces in self.carry for piece in pieces)
        return hashlib.blake2b(digests.encode(), digest_size=8).hexdigest()

    def _furthest_behind(self, live: set[int]) -> int:
        """The deficit rule: the source that lacks most of its share of the tokens, in rows."""
        weights = {d: self.mixture.sources[d].weight for d in live}
        rows = {d: self.tokens[d] / (self.seq_len + 1) for d in live}
        total, whole = sum(rows.values()) + 1, sum(weights.values())
        return max(live, key=lambda d: (weights[d] / whole * total - rows[d] + self._phase[d], -d))

    def _fill(self, d: int, needed: int) -> bool:
        """Draw documents of a source until there is a row of them; False when it is spent before."""
        if self.mixture.packing == "best_fit":
            from titan_pt.data.stream.packing import POOL

            while len(self.carry[d]) < POOL and (piece := self._next_document(d)) is not None:
                self.carry[d].append(piece)
            return bool(self.carry[d])
        have = _tokens_left(self.carry[d])
        while have < needed:
            piece = self._next_document(d)
            if piece is None:
                return False
            self.carry[d].append(piece)
            have += len(piece.tokens)
        return True

    def _next_document(self, d: int) -> Piece | None:
        source, misses = self.mixture.sources[d], 0
        while (place := self.orders[d].next()) is not None:
            if misses == len(source.documents):  # bad luck, or does it have none?
                self.mixture.require_documents(source)
            piece = self.read(d, place)
            if piece is not None and len(piece.tokens):
                return piece
            self.skipped[d] += piece is not None
            misses += 1
        return None

    def read(self, d: int, place: int) -> Piece | None:
        """The document of a place, tokenised; None where it is lost, empty, or not on this side of the split.

        It has no tokens where the encoder leaves it out.
        """
        source, order = self.mixture.sources[d], self.orders[d]
        if are_tokens(source.documents):
            from titan_pt.data.stream.token_shards import read_tokens

            assert isinstance(order, RowOrder)
            return read_tokens(self.mixture, d, place, order.number(place))
        number, text = order.read(place)
        self.lost[d] += text is None
        if not text or not (source.by_row_group or self.mixture.has_text(text)):
            return None
        found = self.mixture.encode(source, number, text)
        return Piece(d, place, f"{source.name}:{number}", found.tokens, found.bytes_per_token, found.targets)

    def _chosen(self, d: int, size: int) -> list[Piece]:
        """The documents of the next row, in their order."""
        pieces = self.carry[d]
        lengths = [piece.left for piece in pieces]
        if self.mixture.packing == "best_fit":
            from titan_pt.data.stream.packing import best_fit

            return [pieces[i] for i in best_fit(lengths, size)]
        ends = itertools.accumulate(lengths, initial=0)
        return [piece for piece, before in zip(pieces, ends, strict=False) if before < size]

    def _cut(self, d: int, size: int) -> PackedRow:
        """Take a row off the documents of a source."""
        pieces = self._chosen(d, size)
        before = [piece.left for piece in pieces]
        row = pack_row(pieces, size, self.mixture.tokenizer.eos_id, d)
        for piece, left in zip(pieces, before, strict=True):
            self.tokens[piece.source] += left - piece.left
        unused = [piece for piece in self.carry[d] if piece not in pieces]
        self.carry[d] = [*(piece for piece in pieces if piece.left), *unused]
        self.padding += size - row.num_tokens
        self.digest = hash_tokens(self.digest, row.tokens)
        return row


def _tokens_left(pieces: list[Piece]) -> int:
    return sum(piece.left for piece in pieces)
