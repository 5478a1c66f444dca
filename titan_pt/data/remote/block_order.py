"""Order of a large source: the row groups of an epoch, in a keyed order, are dealt to the streams one by one.

A stream takes its own in blocks of a few thousand rows, and reads the rows of a block in a keyed order. Its state is a
handful of numbers.
"""

import logging
import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from titan_pt.data.permutation import permute
from titan_pt.data.remote.reader_pool import ReaderPool
from titan_pt.data.remote.retry import Unreadable
from titan_pt.data.remote.row_groups import Listing
from titan_pt.data.remote.skip_log import SkipLog
from titan_pt.data.sources.documents import OrderKey, SkipOptions, Stopped
from titan_pt.data.stream.order import BLOCK_ROWS, order_key

logger = logging.getLogger("titan_pt")

_ROW_BITS = 32  # of a place: block << 32 | row
_MOST_DEFERRED = 4
_KEPT_PLANS = 16
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class BlockOrderState:
    """Where a stream is in its blocks."""

    count: int
    """Blocks begun."""
    block: int | None
    """Number of the block that is read."""
    row: int
    """Next row of the block."""
    upcoming: int
    """The first block that was neither read nor passed over."""
    deferred: tuple[int, ...]
    """Blocks that were passed over, to be read when they can be."""

    def to_json(self) -> list[Any]:
        """Plain values, as a checkpoint has them."""
        return [self.count, self.block, self.row, self.upcoming, list(self.deferred)]

    @classmethod
    def from_json(cls, values: list[Any]) -> "BlockOrderState":
        """The state that `to_json` wrote."""
        count, block, row, upcoming, deferred = values
        return cls(count, block, row, upcoming, tuple(deferred))


@dataclass(frozen=True)
class BlockPlan:
    """The row groups of a block, how many rows they have, and the key of the order of the rows."""

    row_groups: list[int]
    num_rows: int
    key: bytes


@dataclass(frozen=True)
class BlockRequest:
    """A block that is read ahead."""

    started: float
    """Monotonic time of the request."""
    texts: "dict[int, Future[Any]]"
    """Texts to come, by row group."""


class RowGroupReader(Protocol):
    """The part of RowGroupDocuments that an order reads through."""

    listing: Listing
    reader_pool: ReaderPool

    def texts(self, number: int) -> Any:
        """Texts of a row group, which are waited for."""

    def request(self, number: int) -> "Future[Any]":
        """Texts of a row group to come."""


class BlockOrder:
    """Order of one stream through the row groups of a source; a place is the number of the block and the row in it.

    Args:
        row_groups: numbers of the row groups on this side of the held-out split.
        key: its max_epochs is rounded up to whole blocks.
    """

    def __init__(self, key: OrderKey, documents: RowGroupReader, row_groups: list[int], skip: SkipOptions) -> None:
        self._key, self._documents, self._row_groups = key, documents, row_groups
        self._skip_log: SkipLog = skip.log
        self._substitute_after = skip.substitute_after
        mean = max(1.0, documents.listing.num_rows / max(1, len(documents.listing)))
        self._block_groups = max(1, round(BLOCK_ROWS / mean))
        own = len(range(key.index, len(row_groups), key.num_streams))
        self._blocks_per_epoch = -(-own // self._block_groups)
        self._end = None if key.max_epochs is None else -int(-key.max_epochs * self._blocks_per_epoch // 1)
        self.draws = 0
        self._count = 0
        self._block: int | None = None
        self._row = self._rows = 0  # next row of the block, and how many it has
        self._upcoming = 0
        self._deferred: list[int] = []
        self._texts: dict[int, Any] = {}  # of the row groups of the block
        self._waiting: dict[int, BlockRequest] = {}
        self._plans: dict[int, BlockPlan] = {}

    def next(self) -> int | None:
        while self._block is None or self._row == self._rows:
            if not self._begin_block():
                return None
        self._row += 1
        self.draws += 1
        return self._block << _ROW_BITS | self._row - 1

    def read(self, place: int) -> tuple[int, str | None]:
        group, row = self._locate(place)
        number = self._documents.listing.starts[group] + row
        block = place >> _ROW_BITS
        if block == self._block and group in self._texts:
            return number, self._texts[group][row].as_py()
        epoch = block // self._blocks_per_epoch
        if self._reason(epoch, group) is not None:
            return number, None
        try:
            return number, self._documents.texts(group)[row].as_py()
        except Unreadable as error:
            self._quarantine(epoch, group, error)
            return number, None

    def state_dict(self) -> list[Any]:
        deferred = tuple(self._deferred)
        return BlockOrderState(self._count, self._block, self._row, self._upcoming, deferred).to_json()

    def load_state_dict(self, draws: int, state: list[Any]) -> None:
        saved = BlockOrderState.from_json(state)
        self.draws = draws
        self._count, self._block, self._row, self._upcoming = saved.count, saved.block, saved.row, saved.upcoming
        self._deferred = list(saved.deferred)
        self._rows = 0 if self._block is None else self._plan(self._block).num_rows
        self._texts, self._waiting = {}, {}

    def _groups_of(self, block: int) -> list[int]:
        """Numbers of the row groups of a block."""
        epoch, k = divmod(block, self._blocks_per_epoch)
        first = k * self._block_groups
        places = [(first + i) * self._key.num_streams + self._key.index for i in range(self._block_groups)]
        key = order_key(self._key.seed, epoch, self._key.source)
        size = len(self._row_groups)
        return [self._row_groups[permute(place, size, key)] for place in places if place < size]

    def _plan(self, block: int) -> BlockPlan:
        if block not in self._plans:
            if len(self._plans) > _KEPT_PLANS:
                self._plans.clear()
            groups = self._groups_of(block)
            rows = sum(self._documents.listing[group].num_rows for group in groups)
            key = order_key(self._key.seed, block, f"{self._key.index}/{self._key.source}")
            self._plans[block] = BlockPlan(groups, rows, key)
        return self._plans[block]

    def _locate(self, place: int) -> tuple[int, int]:
        """(row group, row in it) of a place."""
        plan = self._plan(place >> _ROW_BITS)
        row = permute(place & ((1 << _ROW_BITS) - 1), plan.num_rows, plan.key)
        for group in plan.row_groups:
            rows = self._documents.listing[group].num_rows
            if row < rows:
                return group, row
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
        self._block, self._row, self._rows = chosen, 0, self._plan(chosen).num_rows
        self._finish(chosen)
        following = self._turn()
        if following is not None:
            self._request(following)
        return True

    def _turn(self) -> int | None:
        """Number of the block whose turn it is; blocks that were passed over come first."""
        if self._deferred:
            return self._deferred[0]
        return self._upcoming if self._exists(self._upcoming) else None

    def _exists(self, block: int) -> bool:
        return self._blocks_per_epoch > 0 and (self._end is None or block < self._end)

    def _choose(self) -> int | None:
        """The next block: the recorded one, the one whose turn it is, or under substitution the first that is there."""
        place = self._key.source, self._key.num_streams, self._key.index, self._count
        recorded, turn = self._skip_log.taken(*place), self._turn()
        if turn is None or recorded is not None:
            return recorded if turn is not None else None
        chosen = turn if self._substitute_after is None else self._first_ready(turn)
        if chosen != turn:
            self._skip_log.take(*place, chosen)
            logger.warning(
                f"data source {self._key.source!r}, stream {self._key.index}: block {chosen} goes before {turn}"
            )
        return chosen

    def _first_ready(self, turn: int) -> int:
        assert self._substitute_after is not None
        stop = self._documents.reader_pool.stop
        while True:
            if self._is_ready(turn):
                return turn
            if time.monotonic() - self._request(turn).started > self._substitute_after:
                ahead = range(self._upcoming, self._upcoming + 1 + _MOST_DEFERRED - len(self._deferred))
                for block in [*self._deferred, *filter(self._exists, ahead)]:
                    if self._is_ready(block):
                        return block
            if stop.wait(_POLL_SECONDS):
                raise Stopped

    def _is_ready(self, block: int) -> bool:
        return all(future.done() for future in self._request(block).texts.values())

    def _request(self, block: int) -> BlockRequest:
        """Have the row groups of a block read ahead, without those that were given up before."""
        if block not in self._waiting:
            epoch = block // self._blocks_per_epoch
            wanted = [group for group in self._groups_of(block) if self._reason(epoch, group) is None]
            texts = {group: self._documents.request(group) for group in wanted}
            self._waiting[block] = BlockRequest(time.monotonic(), texts)
        return self._waiting[block]

    def _reason(self, epoch: int, group: int) -> str | None:
        """Why a row group was given up in an epoch, or None."""
        return self._skip_log.lost(self._key.source, epoch, group)

    def _finish(self, block: int) -> None:
        """Wait for the row groups of a block; record those that are given up."""
        pool = self._documents.reader_pool
        stop, self._texts = pool.stop, {}
        for group, future in self._request(block).texts.items():
            try:
                self._texts[group] = pool.wait(future, stop)
            except Unreadable as error:
                self._quarantine(block // self._blocks_per_epoch, group, error)
        del self._waiting[block]

    def _quarantine(self, epoch: int, group: int, error: Unreadable) -> None:
        found = self._documents.listing[group]
        self._skip_log.lose(self._key.source, epoch, group, str(found), found.num_rows, str(error))
        logger.error(
            f"data source {self._key.source!r}: {found} is given up in epoch {epoch}, {found.num_rows:,} documents are "
            f"lost to it: {error}"
        )
