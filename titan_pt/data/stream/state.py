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

    Tuples have one value a source.
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
        return {
            "tokens": list(self.tokens),
            "padding": self.padding,
            "skipped": list(self.skipped),
            "lost": list(self.lost),
            "draws": list(self.draws),
            "orders": list(self.orders),
            "carry": [[piece.to_json() for piece in pieces] for pieces in self.carry],
            "carry_hash": self.carry_hash,
            "digest": self.digest,
        }

    @classmethod
    def from_json(cls, values: Json) -> "StreamState":
        """The state that `to_json` wrote."""
        return cls(
            tokens=tuple(values["tokens"]),
            padding=values["padding"],
            skipped=tuple(values["skipped"]),
            lost=tuple(values["lost"]),
            draws=tuple(values["draws"]),
            orders=tuple(values["orders"]),
            carry=tuple(tuple(PieceState(*piece) for piece in pieces) for pieces in values["carry"]),
            carry_hash=values["carry_hash"],
            digest=values["digest"],
        )


@dataclass(frozen=True)
class ResumePoint:
    """A stream's state after a global batch, and the state before its last row, which a resume makes again."""

    state: StreamState
    before: StreamState | None
    """None at the start of a run."""

    def to_json(self) -> Json:
        """Plain values, as a checkpoint has them."""
        return {**self.state.to_json(), "before": self.before and self.before.to_json()}

    @classmethod
    def from_json(cls, values: Json) -> "ResumePoint":
        """The point that `to_json` wrote."""
        before = values["before"]
        return cls(StreamState.from_json(values), before and StreamState.from_json(before))


def token_hash(streams: Mapping[str, Json]) -> str:
    """One hash of all tokens that all streams gave, from their states by number."""
    digests = "".join(streams[s]["digest"] for s in sorted(streams, key=int))
    return hashlib.blake2b(digests.encode(), digest_size=8).hexdigest()
