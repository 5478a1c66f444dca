"""Packed rows: tokens of documents laid end to end, each with its position and source. No torch here."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from titan_pt.data.stream.state import PieceState


@dataclass(eq=False)
class Piece:
    """Tokens of one document that are not in a row yet."""

    source: int
    place: int
    document: str
    """Id of the document, "source:number"."""
    tokens: np.ndarray
    bytes_per_token: float
    targets: np.ndarray | None = None
    """Whether each token has a loss; None: all have."""
    start: int = 0
    """Tokens that are in rows already."""

    @property
    def left(self) -> int:
        """Tokens that are in no row yet."""
        return len(self.tokens) - self.start

    @cached_property
    def digest(self) -> str:
        """Hash of all the document's tokens."""
        return hash_tokens("", self.tokens)

    def state(self) -> PieceState:
        """The numbers that find the piece again."""
        return PieceState(self.source, self.place, self.start, len(self.tokens))


@dataclass(frozen=True)
class PackedRow:
    """One row of seq_len + 1 tokens; arrays have one value a token."""

    tokens: np.ndarray
    targets: np.ndarray
    """Whether the token has a loss; the row's first cannot have one, for nothing predicts it."""
    positions: np.ndarray
    """Position in the token's document, from 0 in each row."""
    sources: np.ndarray
    """Number of the token's source in the mixture."""
    documents: tuple[str, ...]
    """Ids of the documents in the row."""
    num_tokens: int
    """Tokens before the padding."""
    num_bytes: float
    """UTF-8 bytes of the tokens that have a loss."""

    @property
    def num_targets(self) -> int:
        """Tokens that are predicted and have a loss."""
        return int(self.targets[1:].sum())


def padding_row(size: int, eos_id: int) -> PackedRow:
    """A row of `size` tokens that predicts nothing."""
    zeros = np.zeros(size, dtype=np.int64)
    return PackedRow(np.full(size, eos_id, dtype=np.int64), zeros.astype(bool), zeros, zeros, (), 0, 0.0)


def pack_row(pieces: Sequence[Piece], size: int, eos_id: int, source: int) -> PackedRow:
    """Take `size` tokens off the pieces, in their order; pad with end-of-document where they run out.

    Args:
        pieces: their `start` moves on.
        source: number of the source that padding counts for.
    """
    tokens = np.full(size, eos_id, dtype=np.int64)
    positions, sources = np.zeros(size, dtype=np.int64), np.full(size, source, dtype=np.int64)
    targets = np.zeros(size, dtype=bool)
    at, num_bytes = 0, 0.0
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
        at, piece.start = span.stop, end
    return PackedRow(tokens, targets, positions, sources, tuple(piece.document for piece in pieces), at, num_bytes)


def hash_tokens(before: str, tokens: np.ndarray) -> str:
    """16 hexadecimal digits of a rolling hash: of the digits so far and more tokens."""
    return hashlib.blake2b(before.encode() + tokens.astype("<i4").tobytes(), digest_size=8).hexdigest()
