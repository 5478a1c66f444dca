"""The name that was meant. Imported where one is unknown."""

import difflib
from collections.abc import Iterable


def closest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name most like this one, whatever the case and the kind of dash, or None.

    Args:
        cutoff: least share of common letters; 1.0 is equality.
    """
    folded = {_fold(candidate): candidate for candidate in known}
    matches = difflib.get_close_matches(_fold(name), list(folded), n=1, cutoff=cutoff)
    return folded[matches[0]] if matches else None


def _fold(name: str) -> str:
    return name.lower().replace("-", "_")
