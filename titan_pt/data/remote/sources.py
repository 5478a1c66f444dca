"""Sources over a network and large parquet files: their listing on rank 0, and how every rank opens them."""

import logging
import os
from dataclasses import replace
from pathlib import Path

from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.job_config import Data, Source
from titan_pt.data.remote.download import downloaded_dataset
from titan_pt.data.remote.hub import attempt
from titan_pt.data.remote.listing import expand, list_addresses, list_dataset, list_local
from titan_pt.data.remote.manifest import Manifest
from titan_pt.data.remote.reader_pool import ReaderPool
from titan_pt.data.remote.retry import Attempts, Patience, Unreachable, persist
from titan_pt.data.remote.row_group_documents import SMALL_GROUPS_PER_STREAM, RowGroupDocuments
from titan_pt.data.remote.row_groups import Listing
from titan_pt.data.sources import arrow
from titan_pt.data.sources.documents import Documents
from titan_pt.data.sources.formatters import find_formatter
from titan_pt.data.sources.identity import HASHED_AT_START_BYTES, cache_folder, same_content
from titan_pt.data.sources.local import matching_files
from titan_pt.data.sources.registry import ListingJson, SourceContext, is_address, naming, title
from titan_pt.run.outgoing import redact

logger = logging.getLogger("titan_pt")

_NOT_THAT_OF_RANK_0 = "is not the file that rank 0 found; give all machines the same files"


def list_documents(source: Source, context: SourceContext) -> ListingJson | None:
    """List the parquet files of a source and their row groups; of a remote one those that the run began with.

    Returns:
        None where the files are converted to Arrow: local ones with few row groups, and a dataset without a commit.

    Raises:
        ConfigError: missing files, dataset, subset or split; files that changed since the run began.
    """
    if source.path is not None and not is_address(source.path):
        with naming(source):
            return _list_files(source, context)
    if source.path is None and (os.path.isdir(source.dataset or "") or _is_offline()):
        return None
    manifest = Manifest.read(context.settings.folder)
    with naming(source):
        known = manifest.listing(source)
        if known is not None:
            _require_same(source, known, context, manifest.path)
            return _signed(known, source).to_json()
        pool = reader_pool(context)
        if source.path is not None:
            found = list_addresses(source.path, pool.store)
        else:
            found = list_dataset(source, pool.patience, pool.store, pool.stop)
    manifest.add(source, found)
    return found.to_json()


def open_documents(source: Source, context: SourceContext, listing: ListingJson | None) -> Documents:
    """Open the documents of a source, with its listing where it has one."""
    found = Listing.from_json(listing) if listing else None
    if found is not None and found.files:
        return _open_row_groups(source, found, context)
    if source.path is not None:
        return arrow.open_documents(source, context, None)
    if found is not None:
        source = source.model_copy(update={"revision": found.commit})
    return _download(source, context)


def reader_pool(context: SourceContext) -> ReaderPool:
    """The reader of row groups that all sources of a context share."""
    if context.reader_pool is None:
        context.reader_pool = _open_reader_pool(context.settings.data)
    pool: ReaderPool = context.reader_pool
    return pool


def _open_reader_pool(data: Data) -> ReaderPool:
    patience = Patience(attempt_seconds=data.request_timeout_seconds, start_seconds=data.max_stall_seconds)
    twice = data.verify == "always"
    return ReaderPool(cache_folder(data.cache_dir) / "units", data.cache_bytes, patience, reads_twice=twice)


def _list_files(source: Source, context: SourceContext) -> ListingJson | None:
    assert source.path is not None
    files, known = matching_files(source.path), context.known_files
    listing = list_local(files, find_formatter(source).columns, known)
    if not _is_large(listing, context.settings.num_streams):
        return None  # a few row groups are converted, checked, and read in any order
    hashes = known.hashes(files, HASHED_AT_START_BYTES)
    described = (replace(file, content=content) for file, content in zip(listing.files, hashes, strict=True))
    return Listing(listing.origin, tuple(described)).to_json()


def _signed(known: Listing, source: Source) -> Listing:
    """A kept listing with the addresses of now: those in the run folder lack what signs them."""
    if source.path is None:
        return known
    places = zip(known.files, expand(source.path), strict=True)
    return replace(known, files=tuple(replace(file, location=address) for file, address in places))


def _require_same(source: Source, known: Listing, context: SourceContext, manifest: Path) -> None:
    """Raise a ConfigError unless the files at an address are those that the run began with.

    Those of a commit of the hub do not change. A server that does not answer is no reason to stop: what was read is in
    the cache, and what is read later is compared then.
    """
    if source.path is None:
        return
    pool = reader_pool(context)
    try:
        found = list_addresses(source.path, pool.store_for(pool.patience.attempt_seconds))
    except Unreachable as error:
        logger.warning(f"{title(source)}: {error}; whether its files are still the same is seen later")
        return
    changed = [
        new.name
        for old, new in zip(known.files, found.files, strict=True)
        if replace(old, content="", location="") != replace(new, content="", location="")
        or not same_content(old.known_content, new.known_content)
    ]
    if changed:
        raise ConfigError(
            f"{changed[0]}{' and others' * (len(changed) > 1)} at {redact(source.path)} changed "
            f"since the run began; restore it, or remove {manifest} to train on what is there now (a resume "
            'then needs checkpoint.exclude_from_loading = ["data"])'
        )


def _open_row_groups(source: Source, listing: Listing, context: SourceContext) -> RowGroupDocuments:
    local = [file for file in listing.files if not is_address(file.location)]
    for file in local:
        if not os.path.isfile(file.location) or os.path.getsize(file.location) != file.size:
            raise ConfigError(f"{file.location}: {_NOT_THAT_OF_RANK_0}")
    own = context.known_files.hashes([file.location for file in local], HASHED_AT_START_BYTES)
    for file, content in zip(local, own, strict=True):
        if not same_content(file.content, content):
            raise ConfigError(f"{file.location}: {_NOT_THAT_OF_RANK_0}")
    large = _is_large(listing, context.settings.num_streams)
    documents = RowGroupDocuments(
        listing, find_formatter(source), reader_pool(context), title(source), context.known_files, by_row_group=large
    )
    if len(documents):
        documents.check()
    return documents


def _is_large(listing: Listing, num_streams: int) -> bool:
    return len(listing) >= SMALL_GROUPS_PER_STREAM * num_streams


def _download(source: Source, context: SourceContext) -> Documents:
    """A dataset downloaded whole; like all that comes over a network it is tried again."""
    assert source.dataset is not None
    if os.path.isdir(source.dataset) or _is_offline():
        return downloaded_dataset(source, context)
    pool = reader_pool(context)
    attempts = Attempts(f"dataset {source.dataset}: download", pool.patience, pool.patience.start_seconds)
    return persist(lambda: attempt(lambda: downloaded_dataset(source, context)), attempts, pool.stop)


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)
