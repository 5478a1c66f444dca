"""The state of a stream: a few numbers, from which a resume makes the same rows again. No torch here."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class PieceState:
    """A document that is not used up: how to find it again, and how far it is read."""

    source: int
    """Number of the source in the mixture."""
    place: int
    """Place in the source's order."""
    start: int
    """Tokens that are in rows already."""
    length: int
    """Tokens of the whole document."""

    def to_json(self) -> list[int]:
        """Four numbers."""
        return [self.source, self.place, self.start, self.length]


@dataclass(frozen=True)
class StreamState:
    """Everything that the next rows of a stream depend on, and counts since the start of the run.

    Tuples have one value a source. Names and order of the fields are those of a checkpoint's data.json.
    """

    tokens: tuple[int, ...]
    """Tokens in rows so far."""
    padding: int
    """Tokens in rows that are no document's."""
    skipped: tuple[int, ...]
    """Documents that the encoder left out."""
    lost: tuple[int, ...]
    """Documents of row groups that were given up."""
    draws: tuple[int, ...]
    """Documents drawn."""
    orders: tuple[Any, ...]
    """`Order.state_dict()`."""
    carry: tuple[tuple[PieceState, ...], ...]
    """Documents begun or waiting for a row."""
    carry_hash: str
    """Hash of the tokens of these documents."""
    digest: str
    """Rolling hash of all tokens in rows so far."""

    def to_json(self) -> Json:
        """Plain values, as a checkpoint has them."""
        carry = [[piece.to_json() for piece in pieces] for pieces in self.carry]
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}
        return {**values, "carry": carry}


@dataclass(frozen=True)
class ResumePoint:
    """A stream's state after a global batch, and the state before its last row, which a resume makes again."""

    state: StreamState
    before: StreamState | None
    """None at the start of a run."""

    def to_json(self) -> Json:
        """Plain values, as a checkpoint has them."""
        return {**self.state.to_json(), "before": self.before and self.before.to_json()}


def token_hash(streams: Mapping[str, Json]) -> str:
    """One hash of all tokens that all streams gave, from their states by number."""
    digests = "".join(streams[s]["digest"] for s in sorted(streams, key=int))
    return hashlib.blake2b(digests.encode(), digest_size=8).hexdigest()
