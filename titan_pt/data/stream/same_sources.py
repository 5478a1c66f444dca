"""Whether the sources of a checkpoint are those of a run: each by its settings, and each file by its content.

Imported on a resume.
"""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from titan_pt.data.sources.identity import Contents, KnownFiles, content_hash, same_content
from titan_pt.data.sources.opening import MixtureSource
from titan_pt.distributed.world import World
from titan_pt.run.progress import Progress

logger = logging.getLogger("titan_pt")


_NOT_SAME = "not what the checkpoint was trained on"
_NOT_KNOWN = (
    "touched, moved or changed since the checkpoint, which was saved before the hash of so large a file was known: "
    "whether it holds the same cannot be told"
)


def compare(
    saved: Mapping[str, Any],
    sources: Sequence[MixtureSource],
    files: Mapping[str, Iterable[Any]],
    cache_dir: str | None,
    world: World,
) -> tuple[tuple[list[str], list[str]], bool]:
    """The differences, found by rank 0, and whether each stream's last row can be made again. A collective.

    Args:
        files: (path, hash of the content) of each file of each source.
    """
    now_in = {name: list(of_source) for name, of_source in files.items()}
    found = world.on_main(lambda: differences(saved, sources, now_in, cache_dir))
    return found, any(found) or same_limits(saved, sources)


def differences(
    saved: Mapping[str, Any], sources: Sequence[MixtureSource], now_in: Mapping[str, Contents], cache_dir: str | None
) -> tuple[list[str], list[str]]:
    """(files that are others now, all else that differs) of the sources of a checkpoint's data.json and these.

    Another max_epochs is none: the order of the documents does not depend on it. A checkpoint of an earlier release
    knows files by name, size and end alone. What is not trained on is warned of.

    Args:
        now_in: the loader's contents, with the paths of the files.
    """
    before, contents = saved["identity"]["sources"], saved.get("contents", {})
    known = KnownFiles(cache_dir)
    now = {source.name for source in sources}
    corrected: list[str] = []
    found = [f"data.sources.{name} is there alone" for name in before if name not in now]
    for source in sources:
        where = f"data source {source.name!r}"
        if source.name not in before:
            found.append(f"data.sources.{source.name} is here alone")
            continue
        fingerprint, weight, _ = before[source.name]
        if weight != source.weight:
            found.append(f"data.sources.{source.name}.weight is {weight} there and {source.weight} here")
        files = _changed_files(contents.get(source.name, []), now_in.get(source.name, []), known)
        if files:
            corrected.append(f"{where}: {_told(files)}")
        elif fingerprint != source.documents.fingerprint:
            found.append(
                f"{where}: its documents are not those of the checkpoint (files, text_field, formatter, split): "
                f"fingerprint {source.documents.fingerprint}, in the checkpoint {fingerprint}"
            )
    for name in sorted(contents.keys() & now_in.keys() - now):
        if files := _changed_files(contents[name], now_in[name], known):
            told = _told(files).replace(_NOT_SAME, "not what the run was validated on before")
            logger.warning(f"{name}: {told}; its losses do not compare with those of earlier steps")
    return corrected, found


def same_limits(saved: Mapping[str, Any], sources: Sequence[MixtureSource]) -> bool:
    """Whether all sources have the max_epochs of a checkpoint; others are logged."""
    before = {name: max_epochs for name, (_, _, max_epochs) in saved["identity"]["sources"].items()}
    changed = [source for source in sources if source.max_epochs != before[source.name]]
    for source in changed:
        now, then = (_shown(value) for value in (source.max_epochs, before[source.name]))
        logger.info(f"data source {source.name!r}: max_epochs is {now} now, {then} in the checkpoint; it goes on there")
    return not changed


def _shown(max_epochs: float | None) -> str:
    return "unset" if max_epochs is None else f"{max_epochs:g}"


def _told(files: Sequence[tuple[str, str]]) -> str:
    (first, why), others = files[0], len(files) - 1
    return f"{first}{f' and {others:,} others are' if others else ' is'} {why}"


def _changed_files(before: Sequence[Sequence[str]], now: Contents, known: KnownFiles) -> list[tuple[str, str]]:
    """Files whose content is another one, or may be, and which of the two."""
    if len(before) != len(now):
        return []  # other files: the fingerprint differs too, or the checkpoint knew none
    compared = ((file, _why_another(file, old, new, known)) for (_, old), (file, new) in zip(before, now, strict=True))
    return [(file, why) for file, why in compared if why]


def _why_another(file: str, old: str, new: str, known: KnownFiles) -> str:
    """Why a file is not the same; empty where it is. One whose hash is not known here is hashed, unless its state is
    that of the checkpoint."""
    (old_hash, old_state), (new_hash, new_state) = _hash_and_state(old), _hash_and_state(new)
    if old_hash and new_hash:
        return "" if same_content(old_hash, new_hash) else _NOT_SAME
    if old_state == new_state != "" or not (old_hash or old_state) or not os.path.isfile(file):
        return ""  # of an earlier release, or of a server that says nothing of its files
    old_hash = old_hash or known.recall([file], old_state, of_any_state=True)[0]
    if not old_hash:
        return _NOT_KNOWN
    if not new_hash:
        size = os.path.getsize(file)
        logger.info(
            f"Hashing {size / 1e9:,.1f} GB, for the file has another time or place than in the checkpoint: {file}"
        )
        # Apart from the hashes of files that were trained on: that of a corrected one must not take their place.
        with Progress("Hashing", "bytes", size) as progress:
            (new_hash,) = known.facts([file], "compared content", lambda path: content_hash(path, progress.add))
    if new_hash != old_hash:
        return _NOT_SAME
    known.facts([file], "content", lambda _: new_hash)
    return ""


def _hash_and_state(content: str) -> tuple[str, str]:
    lines = content.split("\n")
    state = next((line for line in lines if line.startswith("state ")), "")
    return "\n".join(line for line in lines if line != state), state
