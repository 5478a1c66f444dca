"""How long a run over tokens takes: operations by a share of the peak rate."""

from dataclasses import dataclass

SHOWN_MFUS = (0.4, 0.5, 0.6)


@dataclass(frozen=True)
class Pace:
    """A run at one utilisation."""

    mfu: float
    tokens_per_second: float
    """Of all devices together."""
    hours: float
    tokens_in_max_hours: float | None
    """None without training.max_hours."""


def pace(mfu: float, tokens: int, flops_per_token: float, flops_per_second: float, max_hours: float | None) -> Pace:
    """The pace of a run of so many tokens.

    Args:
        flops_per_second: peak of all devices together.
    """
    rate = mfu * flops_per_second / flops_per_token
    return Pace(mfu, rate, tokens / rate / 3600, rate * 3600 * max_hours if max_hours else None)
