"""Best-fit packing: which documents share a row when none may be cut."""

from collections.abc import Sequence

POOL = 32
"""Number of documents of each source to choose from. A resume reads them again: a larger pool resumes more slowly."""


def best_fit(lengths: Sequence[int], size: int) -> list[int]:
    """Numbers of the documents of the next row.

    The oldest comes first, so that none waits for ever; then always the longest that still fits (best-fit decreasing,
    Ding et al. 2024, "Fewer Truncations Improve Language Modeling", here over a window of documents). A document that
    is longer than a row fills one alone, and its rest waits for another.

    Args:
        lengths: tokens left of each document, the oldest first; at least one.
        size: tokens of a row.
    """
    chosen, space = [0], size - lengths[0]
    rest = sorted(range(1, len(lengths)), key=lambda i: (-lengths[i], i))
    for i in rest:
        if lengths[i] <= space:
            chosen.append(i)
            space -= lengths[i]
    return chosen
