"""Opens the sources of a mixture on all ranks: rank 0 looks what there is, once for a run."""

import functools
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titan_pt.components.tokenizer import Tokenizer
from titan_pt.config.builtin_datasets import complete
from titan_pt.config.errors import ConfigError
from titan_pt.config.run_size import plan_run_size
from titan_pt.config.schema.job_config import JobConfig, Source
from titan_pt.data.remote.listing import list_addresses
from titan_pt.data.remote.parquet import is_remote
from titan_pt.data.remote.reader_pool import ReaderPool
from titan_pt.data.remote.retry import Patience, Unreachable
from titan_pt.data.remote.row_groups import Listing
from titan_pt.data.sources.prepared import PreparedDocuments
from titan_pt.data.sources.registry import list_units, open_source
from titan_pt.data.stream.encoding import PLAIN_TEXT, Encoder, PlainText
from titan_pt.data.stream.mixture import MixtureSource, TokenizedMixture
from titan_pt.data.stream.skip_log import SkipLog
from titan_pt.run.signals import until_stopped

if TYPE_CHECKING:  # worker processes do not need torch
    from titan_pt.distributed.world import World

logger = logging.getLogger("titan_pt")

_MANIFEST = "units.json"


def open_mixture(sources: Sequence[Source], config: JobConfig, world: "World") -> list[MixtureSource]:
    """Open the sources; rank 0 first, so that files are listed, converted and downloaded once.

    Raises:
        ConfigError: on every rank, with every rank's reasons; also where a rank finds other documents than rank 0.
        Preempted: on every rank, when one was asked to stop.
    """
    num_streams = plan_run_size(config, world.size).num_streams
    reading = open_reader_pool(config)
    listings = world.on_main(lambda: _list_all(sources, data_folder(config), reading, num_streams))
    open_all = functools.partial(_open_all, sources, listings, config, reading, num_streams)
    first = world.together(lambda: open_all() if world.is_main else [])
    opened = world.together(lambda: first if world.is_main else open_all())
    found = world.gather({source.name: source.documents.fingerprint for source in opened})
    differing = {
        f"data source {name!r}: rank {rank} finds other documents than rank 0; give all machines the same files"
        for rank, fingerprints in enumerate(found)
        for name in fingerprints
        if fingerprints[name] != found[0][name]
    }
    if differing:
        raise ConfigError(*sorted(differing))
    return opened


def sendable(config: JobConfig) -> JobConfig:
    """What the data need of a config. Its other sections may be of types that are made at run time."""
    needed = ("job", "tokenizer", "data", "training", "parallelism", "validation", "debug", "experimental")
    return JobConfig(**{name: getattr(config, name) for name in needed})


def train_fraction(config: JobConfig) -> float:
    """The share of the training sources that is held out."""
    return 0.0 if config.validation.sources else config.validation.holdout_fraction


def as_corpus(
    mixture: list[MixtureSource],
    config: JobConfig,
    tokenizer: Tokenizer,
    ledger: SkipLog,
    encoder: Encoder = PLAIN_TEXT,
) -> TokenizedMixture:
    """The opened sources as what streams train on.

    Raises:
        ConfigError: token shards were made by another tokenizer, or are of plain text where there is another encoder.
    """
    for source in mixture:
        if isinstance(source.documents, PreparedDocuments) and source.documents.tokenizer != tokenizer.fingerprint:
            raise ConfigError(
                f"data source {source.name!r}: its token shards were made by another tokenizer "
                f"({source.documents.tokenizer}) than [tokenizer] has ({tokenizer.fingerprint}); prepare them anew"
            )
        if isinstance(source.documents, PreparedDocuments) and not isinstance(encoder, PlainText):
            raise ConfigError(
                f"data source {source.name!r}: token shards are plain text without records; give the files themselves"
            )
    data = config.data
    return TokenizedMixture(
        mixture,
        tokenizer,
        data_seed(config),
        train_fraction(config),
        ledger=ledger,
        packing=data.packing,
        encoder=encoder,
        substitute_after=data.substitute_after_seconds if data.stall_policy == "substitute" else None,
    )


def build_corpus(
    config: JobConfig,
    listings: dict[str, dict[str, Any] | None],
    tokenizer: Tokenizer,
    num_streams: int,
    ledger: SkipLog,
    encoder: Encoder,
) -> TokenizedMixture:
    """The training documents in another process, which takes the word of the first for what there is."""
    mixture = _open_all(config.data.sources, listings, config, open_reader_pool(config), num_streams)
    return as_corpus(mixture, config, tokenizer, ledger, encoder)


def open_alone(sources: Sequence[Source], config: JobConfig) -> list[MixtureSource]:
    """The same in one process, for tools."""
    num_streams, reading = plan_run_size(config, 1).num_streams, open_reader_pool(config)
    return _open_all(
        sources, _list_all(sources, data_folder(config), reading, num_streams), config, reading, num_streams
    )


def open_reader_pool(config: JobConfig) -> ReaderPool:
    """The reader of units that `[data]` means."""
    data = config.data
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(data.cache_dir or f"{home}/titan_pt").expanduser() / "units"
    patience = Patience(attempt_seconds=data.request_timeout_seconds, start_seconds=data.max_stall_seconds)
    return ReaderPool(folder, data.cache_bytes, patience)


def data_folder(config: JobConfig) -> Path:
    """What the data of a run leave in its run folder: the units, and the decisions about them."""
    return Path(config.job.dump_folder).expanduser() / "data"


def data_seed(config: JobConfig) -> int:
    """Seed of the document order."""
    return config.debug.seed if config.data.seed is None else config.data.seed


def _list_all(
    sources: Sequence[Source], folder: Path, reading: ReaderPool, num_streams: int
) -> dict[str, dict[str, Any] | None]:
    """The units of each source by its name, as plain values, or its problems.

    Of a remote source they are those that the run began with.
    """
    path = folder / _MANIFEST
    known = _read_manifest(path)
    found: dict[str, dict[str, Any] | None] = {}
    for source in sources:
        key = _key(source)
        if key in known:
            try:
                _require_same(source, Listing.from_json(known[key]), reading, path)
                found[source.name] = known[key]
            except ConfigError as error:
                found[source.name] = {"problems": [f"data source {source.name!r}: {text}" for text in error.problems]}
            continue
        try:
            listing = list_units(source, reading=reading, num_streams=num_streams)
        except ConfigError as error:
            found[source.name] = {"problems": error.problems}
            continue
        found[source.name] = listing.to_json() if listing is not None else None
        if listing is not None and all(is_remote(file.location) for file in listing.files):
            known[key] = found[source.name]
            _write_manifest(path, known)
    return found


def _require_same(source: Source, known: Listing, reading: ReaderPool, manifest: Path) -> None:
    """Raise a ConfigError unless the files at an address are those that the run began with.

    Those of a commit of the hub do not change. A server that does not answer is no reason to stop: what was read is in
    the cache, and what is read later is compared then.
    """
    if source.path is None or not is_remote(source.path):
        return
    try:
        found = list_addresses(source.path, reading.store_for(reading.patience.attempt_seconds))
    except Unreachable as error:
        logger.warning(f"data source {source.name!r}: {error}; whether its files are still the same is seen later")
        return
    changed = [new.name for old, new in zip(known.files, found.files, strict=True) if old != new]
    if changed:
        raise ConfigError(
            f"{changed[0]}{' and others' * (len(changed) > 1)} at {source.path} changed "
            f"since the run began; restore it, or remove {manifest} to train on what is there now (a resume "
            'then needs checkpoint.exclude_from_loading = ["data"])'
        )


def _key(source: Source) -> str:
    """What a source was asked for."""
    source = complete(source)
    return json.dumps([source.path, source.dataset, source.subset, source.split, source.revision])


def _read_manifest(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        known = json.loads(path.read_text())
        for listing in known.values():
            Listing.from_json(listing)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path}: damaged: {error}; restore it, or remove it to list the data anew (a resume then checks it)"
        ) from error
    return known


def _write_manifest(path: Path, known: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(json.dumps(known))
    os.replace(temporary, path)


def _open_all(
    sources: Sequence[Source],
    listings: dict[str, dict[str, Any] | None],
    config: JobConfig,
    reading: ReaderPool,
    num_streams: int,
) -> list[MixtureSource]:
    opened: list[MixtureSource] = []
    problems: list[str] = []
    for source in until_stopped(sources):
        values = listings[source.name] or {}
        problems += values.get("problems", [])
        if "problems" in values:
            continue
        try:
            documents = open_source(
                source,
                seed=data_seed(config),
                cache_dir=config.data.cache_dir,
                listing=Listing.from_json(values) if values else None,
                reading=reading,
                num_streams=num_streams,
            )
            opened.append(MixtureSource(source.name, documents, source.weight, source.max_epochs, values or None))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(*problems)
    return opened
