"""Names in messages about mistakes: the name, file or folder that was meant. Imported where there is a mistake."""

import difflib
import glob
import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from titan_pt.run.outgoing import MASK, looks_secret, redact

_LONGEST_SHOWN = 80
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_OUR_FOLDERS = {"checkpoint", "checkpoints", "data", "hf", "models", "outputs", "runs", "train_configs", "work"}
_MOST_ENTRIES = 10_000
"""Of a folder that are looked at: a message is not worth the listing of a data set's."""


def shortened(value: Any) -> str:
    """A value as `config.errors.shown` shows it."""
    if isinstance(value, dict):
        return "{...}" if value else "{}"
    if isinstance(value, list):
        return "[...]" if value else "[]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):  # Python refuses to write integers of thousands of digits
        return str(value) if value.bit_length() <= 128 else "a huge integer"
    if isinstance(value, str):
        text = MASK if looks_secret(value) else redact(value)
        return repr(text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}...")
    return str(value)


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


def closest_path(path: str) -> str | None:
    """The path that exists and is most like one that does not, which may be a glob; None where none is like it.

    Parts are corrected from the left: where one is missing, the entry most like it stands in.
    """
    found, parts = "/" if path.startswith("/") else "", [part for part in path.split("/") if part not in ("", ".")]
    for i, part in enumerate(parts):
        if glob.has_magic(part):
            return _matching(found, part, parts[i:])
        here = os.path.join(found, part)
        if not os.path.lexists(here):
            match = _closest_entry(part, _entries(found, folders=i < len(parts) - 1))
            if match is None:
                return None
            here = os.path.join(found, match)
        found = here
    return found if os.path.exists(found) else None


def _closest_entry(name: str, entries: Iterable[str]) -> str | None:
    """The entry most like a name: of its ending, by what stands before that, or by the whole."""
    stem, ending = os.path.splitext(name)
    stems = {os.path.splitext(entry)[0]: entry for entry in entries if ending and entry.endswith(ending)}
    match = closest(stem, stems)
    return stems[match] if match else closest(name, [entry for entry in entries if not entry.endswith(ending or "/")])


def _matching(folder: str, pattern: str, rest: list[str]) -> str | None:
    """The glob in a folder that is there: as it was, where it matches, else of the ending that most files have."""
    if glob.glob(whole := os.path.join(folder, *rest), recursive=True):
        return whole
    endings = Counter(Path(name).suffix for name in _entries(folder) if Path(name).suffix)
    if len(rest) > 1 or not endings:
        return None
    return os.path.join(folder, f"*{endings.most_common(1)[0][0]}")


def _entries(folder: str, *, folders: bool = False) -> list[str]:
    try:
        with os.scandir(folder or ".") as entries:
            found = [entry for entry, _ in zip(entries, range(_MOST_ENTRIES), strict=False)]
    except OSError:
        return []
    return [entry.name for entry in found if not folders or entry.is_dir()]


def meant_path(path: str, others: Iterable[str] = ()) -> str:
    """The text "; did you mean ...?" for a path that is not there.

    Args:
        others: paths elsewhere that may be meant, by the names of their files.
    """
    match = closest_path(path)
    if match is None:
        elsewhere = {os.path.basename(other): other for other in others}
        name = _closest_entry(os.path.basename(path), elsewhere)
        match = elsewhere[name] if name else None
    return f"; did you mean {match}?" if match else ""


def missing_below(path: str) -> str:
    """Where a path stops to exist, in words: the deepest folder that is there."""
    parent = Path(os.path.abspath(path)).parent
    while not parent.is_dir():
        parent = parent.parent
    return str(parent)


def hub_download(path: str, *, dataset: bool = False) -> str:
    """What to do with a name of the hub that stands where a folder belongs, after "; "; empty where it is none."""
    if not _HUB_NAME.fullmatch(path) or path.partition("/")[0] in _OUR_FOLDERS or os.path.isdir(os.path.dirname(path)):
        return ""
    folder = f"models/{path.rpartition('/')[2]}"
    kind = "--repo-type dataset " if dataset else ""
    return (
        f"; it looks like a name on the hub: download it with `hf download {kind}{path} --local-dir {folder}`, then "
        f"give {folder}"
    )


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
