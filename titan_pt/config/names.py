"""Names in messages about mistakes: the one that was meant, and paths. Imported where there is a mistake."""

import difflib
import json
import re
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


def dotted(path: Iterable[str | int]) -> str:
    """A path as a TOML file would write it: `data.sources[0].name`; keys that need quotes have them."""
    name = ""
    for part in path:
        if isinstance(part, int):
            name += f"[{part}]"
        else:
            key = part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else json.dumps(part, ensure_ascii=False)
            name += f".{key}" if name else key
    return name
