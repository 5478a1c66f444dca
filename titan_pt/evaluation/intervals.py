"""95% confidence intervals of shares of problems."""

import math

_Z = 1.959963984540054
"""97.5% quantile of the normal distribution."""


def wilson(share: float, total: int) -> tuple[float, float]:
    """95% interval of a share of right answers (Wilson 1927, eq. 3), which holds also near 0 and 1.

    For a mean of values from 0 to 1, such as each problem's pass@k, it is wider than need be: shares of the same mean
    vary most.

    Args:
        share: 0 to 1.
        total: problems, 1 or more.

    Raises:
        ValueError: the share or the total is out of range.
    """
    if not 0.0 <= share <= 1.0 or total < 1:
        raise ValueError(f"share = {share} of total = {total}: want 0 to 1 of at least 1")
    spread = _Z * _Z / total
    centre = (share + spread / 2) / (1 + spread)
    half = _Z / (1 + spread) * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    # At the ends the formula gives 0 and 1 themselves, which rounding misses.
    low = max(0.0, centre - half) if share > 0.0 else 0.0
    return low, min(1.0, centre + half) if share < 1.0 else 1.0
