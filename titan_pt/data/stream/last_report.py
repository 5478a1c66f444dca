"""What is said of the rows of a run at its end: padding, and documents that were lost."""

import logging
from collections.abc import Sequence

from titan_pt.data.stream.mixture import TokenizedMixture
from titan_pt.data.stream.state import StreamState

logger = logging.getLogger("titan_pt")


def report(mixture: TokenizedMixture, states: Sequence[StreamState]) -> None:
    """Log the padding and the lost documents of these streams."""
    padding = sum(state.padding for state in states)
    if padding:
        tokens = padding + sum(sum(state.tokens) for state in states)
        logger.info(f"Packing {mixture.packing}: {padding:,} of {tokens:,} row tokens were padding")
    if lost := sum(sum(state.lost) for state in states):
        where = mixture.skip.folder
        logger.error(f"{lost:,} documents were lost to row groups that were given up: {where}/ledger-*.jsonl")
