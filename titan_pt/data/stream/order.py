"""Which document of a source a stream reads next: a function of numbers, with no buffer to save.

A set with random access is permuted document by document: draw m of stream s of S is number g = m S + s of the
source, so epoch g // N, document permute(g mod N). A large source is permuted unit by unit: the units of an epoch, in
a keyed order, are dealt to the streams one by one; a stream takes its own in blocks of a few thousand rows and reads
the rows of a block in a keyed order. Either way the streams share out every epoch without loss or repetition.
"""

import hashlib
import logging
import time
from concurrent.futures import Future
from typing import Any, Protocol

from titan_pt.data.permutation import permute
from titan_pt.data.remote.retry import Stopped, Unreadable
from titan_pt.data.remote.row_group_documents import RowGroupDocuments
from titan_pt.data.sources.registry import Documents
from titan_pt.data.stream.skip_log import SkipLog

logger = logging.getLogger("titan_pt")

BLOCK_ROWS = 4096
"""A block has about this many rows: the window in which the rows of different units are mixed."""
_ROW_BITS = 32  # of a place in a large source: block << 32 | row
_MOST_DEFERRED = 4
_KEPT_PLANS = 16
_POLL_SECONDS = 0.1


class Order(Protocol):
    """A stream's way through one source."""

    draws: int
    """Documents drawn so far, those that gave no text included."""

    def next(self) -> int | None:
        """The place of the next document; None when the source is spent."""
        ...

    def read(self, place: int) -> tuple[int, str | None]:
        """The document's number in the source, and its text; None where it is lost with its unit."""
        ...

    def state_dict(self) -> Any:
        """JSON: what there is beside `draws`."""
        ...

    def load_state_dict(self, draws: int, state: Any) -> None:
        """Go on where the state was taken."""
        ...


def order_key(seed: int, epoch: int, name: str) -> bytes:
    """The key of one epoch's permutation."""
    key = f"{seed}/{epoch}/{name}".encode()
    return key if len(key) <= 64 else hashlib.sha256(key).digest()


class RowOrder:
    """Document by document; a place is the number of the draw."""

    def __init__(
        self, name: str, documents: Documents, max_epochs: float | None, seed: int, index: int, num_streams: int
    ) -> None:
        self._name, self._documents, self._seed = name, documents, seed
        self._index, self._num_streams = index, num_streams
        self._limit = None if max_epochs is None else max_epochs * len(documents)
        self.draws = 0

    def next(self) -> int | None:
        if self._limit is not None and self.draws * self._num_streams + self._index >= self._limit:
            return None
        self.draws += 1
        return self.draws - 1

    def number(self, place: int) -> int:
        """The document's number in the source."""
        epoch, offset = divmod(place * self._num_streams + self._index, len(self._documents))
        return permute(offset, len(self._documents), order_key(self._seed, epoch, self._name))

    def read(self, place: int) -> tuple[int, str | None]:
        number = self.number(place)
        return number, self._documents[number]

    def state_dict(self) -> None:
        return None

    def load_state_dict(self, draws: int, state: Any) -> None:
        assert state is None, "a source that has been read unit by unit"
        self.draws = draws


class BlockOrder:
    """Unit by unit; a place is the number of the block and the row in it.

    Args:
        units: numbers of the units on this side of the held-out split.
        max_epochs: rounded up to whole blocks.
        substitute_after: seconds of waiting after which a later block is read first; None: never.
    """

    def __init__(
        self,
        name: str,
        documents: RowGroupDocuments,
        units: list[int],
        max_epochs: float | None,
        seed: int,
        index: int,
        num_streams: int,
        ledger: SkipLog,
        substitute_after: float | None,
    ) -> None:
        self._name, self._documents, self._units = name, documents, units
        self._seed, self._index, self._num_streams = seed, index, num_streams
        self._ledger, self._substitute_after = ledger, substitute_after
        mean = max(1.0, documents.listing.num_rows / max(1, len(documents.listing)))
        self._block_units = max(1, round(BLOCK_ROWS / mean))
        own = len(range(index, len(units), num_streams))
        self._blocks_per_epoch = -(-own // self._block_units)
        self._end = None if max_epochs is None else -int(-max_epochs * self._blocks_per_epoch // 1)
        self.draws = 0
        self._count = 0  # blocks begun
        self._block: int | None = None
        self._row = self._rows = 0  # next row of the block, and how many it has
        self._upcoming = 0  # the first block that was neither read nor passed over
        self._deferred: list[int] = []  # passed over, to be read when they can be
        self._texts: dict[int, Any] = {}  # of the units of the block
        self._waiting: dict[int, tuple[float, dict[int, Future[Any]]]] = {}
        self._plans: dict[int, tuple[list[int], int, bytes]] = {}

    def next(self) -> int | None:
        while self._block is None or self._row == self._rows:
            if not self._begin_block():
                return None
        self._row += 1
        self.draws += 1
        return self._block << _ROW_BITS | self._row - 1

    def read(self, place: int) -> tuple[int, str | None]:
        unit, row = self._locate(place)
        number = self._documents.listing.starts[unit] + row
        block = place >> _ROW_BITS
        if block == self._block and unit in self._texts:
            return number, self._texts[unit][row].as_py()
        epoch = block // self._blocks_per_epoch
        if self._ledger.lost(self._name, epoch, unit) is not None:
            return number, None
        try:
            return number, self._documents.texts(unit)[row].as_py()
        except Unreadable as error:
            self._quarantine(epoch, unit, error)
            return number, None

    def state_dict(self) -> list[Any]:
        return [self._count, self._block, self._row, self._upcoming, list(self._deferred)]

    def load_state_dict(self, draws: int, state: list[Any]) -> None:
        self.draws = draws
        self._count, self._block, self._row, self._upcoming, deferred = state
        self._deferred = list(deferred)
        self._rows = 0 if self._block is None else self._plan(self._block)[1]
        self._texts, self._waiting = {}, {}

    def _units_of(self, block: int) -> tuple[int, list[int]]:
        """(epoch, units) of a block."""
        epoch, k = divmod(block, self._blocks_per_epoch)
        first = k * self._block_units
        places = [(first + i) * self._num_streams + self._index for i in range(self._block_units)]
        key = order_key(self._seed, epoch, self._name)
        size = len(self._units)
        return epoch, [self._units[permute(place, size, key)] for place in places if place < size]

    def _plan(self, block: int) -> tuple[list[int], int, bytes]:
        """(units, rows, key of the order of the rows) of a block."""
        if block not in self._plans:
            if len(self._plans) > _KEPT_PLANS:
                self._plans.clear()
            units = self._units_of(block)[1]
            rows = sum(self._documents.listing[unit].num_rows for unit in units)
            self._plans[block] = units, rows, order_key(self._seed, block, f"{self._index}/{self._name}")
        return self._plans[block]

    def _locate(self, place: int) -> tuple[int, int]:
        """(unit, row in it)."""
        units, num_rows, key = self._plan(place >> _ROW_BITS)
        row = permute(place & ((1 << _ROW_BITS) - 1), num_rows, key)
        for unit in units:
            rows = self._documents.listing[unit].num_rows
            if row < rows:
                return unit, row
            row -= rows
        raise AssertionError("a row beyond its block")

    def _begin_block(self) -> bool:
        chosen = self._choose()
        if chosen is None:
            return False
        if chosen in self._deferred:
            self._deferred.remove(chosen)
        else:
            self._deferred += range(self._upcoming, chosen)
            self._upcoming = chosen + 1
        self._count += 1
        self._block, self._row, self._rows = chosen, 0, self._plan(chosen)[1]
        self._finish(chosen)
        following = self._turn()
        if following is not None:
            self._request(following)
        return True

    def _turn(self) -> int | None:
        """The block whose turn it is: what was passed over comes first."""
        if self._deferred:
            return self._deferred[0]
        return self._upcoming if self._exists(self._upcoming) else None

    def _exists(self, block: int) -> bool:
        return self._blocks_per_epoch > 0 and (self._end is None or block < self._end)

    def _choose(self) -> int | None:
        """The next block: the recorded one, the one whose turn it is, or under substitution the first that is there."""
        place = self._name, self._num_streams, self._index, self._count
        recorded, turn = self._ledger.taken(*place), self._turn()
        if turn is None or recorded is not None:
            return recorded if turn is not None else None
        chosen = turn if self._substitute_after is None else self._first_ready(turn)
        if chosen != turn:
            self._ledger.take(*place, chosen)
            logger.warning(f"data source {self._name!r}, stream {self._index}: block {chosen} goes before {turn}")
        return chosen

    def _first_ready(self, turn: int) -> int:
        assert self._substitute_after is not None
        stop = self._documents.reading.stop
        while True:
            if self._is_ready(turn):
                return turn
            if time.monotonic() - self._request(turn)[0] > self._substitute_after:
                ahead = range(self._upcoming, self._upcoming + 1 + _MOST_DEFERRED - len(self._deferred))
                for block in [*self._deferred, *filter(self._exists, ahead)]:
                    if self._is_ready(block):
                        return block
            if stop.wait(_POLL_SECONDS):
                raise Stopped

    def _is_ready(self, block: int) -> bool:
        return all(future.done() for future in self._request(block)[1].values())

    def _request(self, block: int) -> tuple[float, dict[int, "Future[Any]"]]:
        """Have the units of a block read ahead; (when that began, what comes)."""
        if block not in self._waiting:
            epoch, units = self._units_of(block)
            wanted = [unit for unit in units if self._ledger.lost(self._name, epoch, unit) is None]
            self._waiting[block] = time.monotonic(), {unit: self._documents.request(unit) for unit in wanted}
        return self._waiting[block]

    def _finish(self, block: int) -> None:
        """Wait for the units of a block; those given up are written down."""
        reading = self._documents.reading
        stop, self._texts = reading.stop, {}
        for unit, future in self._request(block)[1].items():
            try:
                self._texts[unit] = reading.wait(future, stop)
            except Unreadable as error:
                self._quarantine(block // self._blocks_per_epoch, unit, error)
        del self._waiting[block]

    def _quarantine(self, epoch: int, unit: int, error: Unreadable) -> None:
        found = self._documents.listing[unit]
        self._ledger.lose(self._name, epoch, unit, str(found), found.num_rows, str(error))
        logger.error(
            f"data source {self._name!r}: {found} is given up in epoch {epoch}, {found.num_rows:,} documents are lost "
            f"to it: {error}"
        )
