"""Which document of a source a stream reads next: a function of numbers, with no buffer to save.

A set with random access is permuted document by document: draw m of stream s of S is number g = m S + s of the
source, so epoch g // N, document permute(g mod N). Large sources are permuted by row group (`remote/block_order.py`).
Either way the streams share out every epoch without loss or repetition.
"""

import hashlib
from typing import Any

from titan_pt.data.permutation import permute
from titan_pt.data.sources.documents import Documents, OrderKey

BLOCK_ROWS = 4096
"""Rows of a block, about: the window in which the rows of different row groups are mixed."""


def order_key(seed: int, epoch: int, name: str) -> bytes:
    """The key of one epoch's permutation."""
    key = f"{seed}/{epoch}/{name}".encode()
    return key if len(key) <= 64 else hashlib.sha256(key).digest()


class RowOrder:
    """Order of a source document by document; a place is the number of the draw."""

    def __init__(self, key: OrderKey, documents: Documents) -> None:
        self._key, self._documents = key, documents
        self._limit = None if key.max_epochs is None else key.max_epochs * len(documents)
        self.draws = 0

    def next(self) -> int | None:
        if self._limit is not None and self._position(self.draws) >= self._limit:
            return None
        self.draws += 1
        return self.draws - 1

    def number(self, place: int) -> int:
        """The document's number in the source."""
        epoch, offset = divmod(self._position(place), len(self._documents))
        return permute(offset, len(self._documents), order_key(self._key.seed, epoch, self._key.source))

    def read(self, place: int) -> tuple[int, str | None]:
        number = self.number(place)
        return number, self._documents[number]

    def state_dict(self) -> None:
        return None

    def load_state_dict(self, draws: int, state: Any) -> None:
        assert state is None, "a source that has been read row group by row group"
        self.draws = draws

    def _position(self, draw: int) -> int:
        """Number of a draw among those of all streams."""
        return draw * self._key.num_streams + self._key.index
