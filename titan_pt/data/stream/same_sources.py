"""Whether the sources of a checkpoint are those of a run: each by its settings, and each file by its content.

Imported on a resume.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from titan_pt.data.sources.documents import contents_of
from titan_pt.data.sources.identity import same_content
from titan_pt.data.sources.opening import MixtureSource

logger = logging.getLogger("titan_pt")


def differences(saved: Mapping[str, Any], sources: Sequence[MixtureSource]) -> tuple[list[str], list[str]]:
    """(files that are others now, all else that differs) of the sources of a checkpoint's data.json and these.

    Another max_epochs is none: the order of the documents does not depend on it. A checkpoint of an earlier release
    knows files by name, size and end alone.
    """
    before, contents = saved["identity"]["sources"], saved.get("contents", {})
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
        files = _changed_files(contents.get(source.name, []), contents_of(source.documents))
        if files:
            others = f" and {len(files) - 1:,} others are" if len(files) > 1 else " is"
            corrected.append(f"{where}: {files[0]}{others} not what the checkpoint was trained on")
        elif fingerprint != source.documents.fingerprint:
            found.append(
                f"{where}: its documents are not those of the checkpoint (files, text_field, formatter, split): "
                f"fingerprint {source.documents.fingerprint}, in the checkpoint {fingerprint}"
            )
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


def _changed_files(before: Sequence[Sequence[str]], now: Sequence[Sequence[str]]) -> list[str]:
    """Files whose content is another one; one that was too large to be hashed may be the same."""
    if len(before) != len(now):
        return []  # other files: the fingerprint differs too, or the checkpoint knew none
    return [file for (_, old), (file, new) in zip(before, now, strict=True) if not same_content(old, new)]
