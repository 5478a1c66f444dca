"""Datasets that `datasets` opens whole: those of the hub whose files are not parquet, and local dataset folders."""

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from titan_pt.config.errors import ConfigError, one_of
from titan_pt.config.schema.job_config import Source
from titan_pt.data.permutation import digest
from titan_pt.data.remote.retry import Refused
from titan_pt.data.sources.arrow import ArrowColumn, converted
from titan_pt.data.sources.formatted_texts import texts_of_formatter
from titan_pt.data.sources.formatters import find_formatter, get_formatter
from titan_pt.data.sources.identity import HASHED_AT_START_BYTES, Contents, KnownFiles
from titan_pt.data.sources.local import format_row, quiet_datasets
from titan_pt.data.sources.parquet_rows import check_columns
from titan_pt.data.sources.registry import SourceContext, title
from titan_pt.run.progress import growing

# What `Dataset.save_to_disk` and `DatasetDict.save_to_disk` write.
_SAVED_SET, _SAVED_SPLITS = "state.json", "dataset_dict.json"


def downloaded_dataset(source: Source, context: SourceContext) -> ArrowColumn:
    """Texts of a dataset of the hub, downloaded whole, or of a local dataset folder."""
    split, formatter, where = source.split or "train", find_formatter(source), title(source)
    is_folder = os.path.isdir(str(source.dataset))
    dataset, contents = _open_folder(source, split, context) if is_folder else _download(source, split, context)
    names = [str(source.dataset), str(source.subset), split, str(source.revision)]
    identity = digest([str(len(dataset)), formatter.fingerprint, *names])
    if formatter.name == "text":
        return ArrowColumn(dataset, formatter.columns[0], where, identity, contents)
    check_columns(dataset.column_names, formatter.columns, str(source.dataset))
    arguments = {"dataset": dataset, "formatter": formatter.name, "fingerprint": formatter.key}
    texts = converted({**arguments, "contents": digest(contents)}, _formatted_rows, context)
    contents += texts_of_formatter(texts, formatter, context.known_files)
    return ArrowColumn(texts, "text", where, identity, contents)


def _download(source: Source, split: str, context: SourceContext) -> tuple[Any, Contents]:
    library = quiet_datasets()
    with growing(f"Download of {source.dataset}", _hub_folder(source)):
        dataset = library.load_dataset(
            source.dataset,
            name=source.subset,
            split=split,
            revision=source.revision,
            cache_dir=context.settings.data.cache_dir,
        )
    # The folder in the cache is named by the commit.
    commits = {Path(file["filename"]).parent.name for file in dataset.cache_files}
    damaged = [file for commit in sorted(commits) for file in damaged_downloads(source, commit, context.known_files)]
    if damaged:
        for folder in {Path(file["filename"]).parent for file in dataset.cache_files}:
            shutil.rmtree(folder, ignore_errors=True)
        for file in damaged:
            file.unlink(missing_ok=True)
        raise Refused(f"{damaged[0].name}: its bytes are not those that the hub has the hash of")
    return dataset, [(str(source.dataset), commit) for commit in sorted(commits)]


def damaged_downloads(source: Source, commit: str, known: KnownFiles) -> list[Path]:
    """Files of a commit in the hub's cache that are not what their names there, the hub's hashes, say."""
    from huggingface_hub import constants

    folder = _hub_folder(source) / "snapshots" / commit
    if constants.HF_HUB_OFFLINE or not folder.is_dir():
        return []
    files = sorted({path.resolve() for path in folder.rglob("*") if path.is_file()})
    named = [file for file in files if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", file.name)]
    whole = known.facts([str(file) for file in named], "published", _is_published)
    return [file for file, is_whole in zip(named, whole, strict=True) if not is_whole]


def _hub_folder(source: Source) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE, f"datasets--{str(source.dataset).replace('/', '--')}")


def _is_published(path: str) -> bool:
    """Whether a file has the hash that it is named by: sha256, git's own, or sha1."""
    git = hashlib.sha1(b"blob %d\0" % os.path.getsize(path), usedforsecurity=False)
    digests = [hashlib.sha256(), git, hashlib.sha1(usedforsecurity=False)]
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            for digest in digests:
                digest.update(block)
    return os.path.basename(path) in [digest.hexdigest() for digest in digests]


def _open_folder(source: Source, split: str, context: SourceContext) -> tuple[Any, Contents]:
    """A folder of data files, which the library converts, or one that it has written itself."""
    folder, library = Path(str(source.dataset)), quiet_datasets()
    saved_splits = (folder / _SAVED_SPLITS).is_file()
    if saved_splits or (folder / _SAVED_SET).is_file():
        if source.subset is not None:
            raise ConfigError(f"subset = {source.subset!r}: {folder} was written by save_to_disk, which has none")
        if saved_splits and not (folder / split / _SAVED_SET).is_file():
            found = [path.name for path in sorted(folder.iterdir()) if (path / _SAVED_SET).is_file()]
            raise ConfigError(f"split = {split!r}: {folder} has {one_of(found)}")
        folder = folder / split if saved_splits else folder
        files = _files_below(folder)
        return library.load_from_disk(str(folder)), _contents(files, context, HASHED_AT_START_BYTES)
    contents = _contents(_files_below(folder), context)
    # The library knows the files by their times, which can be put back.
    cache = context.settings.data.cache_dir or library.config.HF_DATASETS_CACHE
    place = os.path.join(cache, "folders", digest([content for _, content in contents]))
    return library.load_dataset(str(folder), name=source.subset, split=split, cache_dir=place), contents


def _contents(files: list[str], context: SourceContext, limit_bytes: float = float("inf")) -> Contents:
    return list(zip(files, context.known_files.hashes(files, limit_bytes), strict=True))


def _files_below(folder: Path) -> list[str]:
    return sorted(
        os.path.join(parent, name)
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if not any(part.startswith(".") for part in Path(parent, name).relative_to(folder).parts)
    )


def _formatted_rows(dataset: Any, formatter: str, **_cache_key: Any) -> Iterator[dict[str, str]]:
    found = get_formatter(formatter, "text")
    for number, row in enumerate(dataset.select_columns(list(found.columns)) if found.columns else dataset):
        yield {"text": format_row(found, row, f"row {number}")}
