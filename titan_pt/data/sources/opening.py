"""Opens the sources of a mixture on all ranks; rank 0 lists their files, once for a run."""

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from titan_pt.config.errors import ConfigError
from titan_pt.config.run_size import plan_run_size
from titan_pt.config.schema.job_config import JobConfig, Source
from titan_pt.data.sources.documents import Documents, are_streamed, contents_of
from titan_pt.data.sources.identity import Contents, same_content
from titan_pt.data.sources.registry import DataSettings, ListingJson, SourceContext, list_source, open_source
from titan_pt.run.signals import until_stopped

logger = logging.getLogger("titan_pt")

if TYPE_CHECKING:  # worker processes do not need torch
    from titan_pt.distributed.world import World


@dataclass(frozen=True)
class MixtureSource:
    """A source with its place in the mixture."""

    name: str
    documents: Documents
    weight: float
    max_epochs: float | None = None
    listing: ListingJson | None = None
    """Files of the source, for other processes that open it."""
    special_tokens: bool = False
    """Whether names of special tokens in its texts stand for these tokens."""

    @property
    def by_row_group(self) -> bool:
        """Whether the source is read, and split, row group by row group."""
        return are_streamed(self.documents) and self.documents.by_row_group

    def describe(self, number: int) -> str:
        """A document's number and, where its source knows it, its file and place there."""
        place = getattr(self.documents, "place", None)
        return f"document {number} ({place(number)})" if place else f"document {number}"

    def wait_for_ever(self) -> None:
        """Lift the source's own limit on waiting: data.max_stall_seconds of all ranks together holds from here on."""
        if are_streamed(self.documents):
            self.documents.wait_for_ever()

    def interrupt(self) -> None:
        """End all waiting for the source's documents."""
        if are_streamed(self.documents):
            self.documents.interrupt()


def open_mixture(sources: Sequence[Source], config: JobConfig, world: "World") -> list[MixtureSource]:
    """Open the sources; rank 0 first, so that files are listed, converted and downloaded once.

    Raises:
        ConfigError: on every rank, with every rank's reasons; also where a rank finds other documents than rank 0.
        Preempted: on every rank, when one was asked to stop.
    """
    for source in sources:
        if source.special_tokens:
            logger.info(f"Data {source.name}: special_tokens = true: names of special tokens in its texts are tokens")
    context = SourceContext(data_settings(config, plan_run_size(config, world.size).num_streams))
    listings = world.on_main(lambda: list_all(sources, context))
    open_every = functools.partial(open_all, sources, listings, context)
    first = world.together(lambda: open_every() if world.is_main else [])
    opened = world.together(lambda: first if world.is_main else open_every())
    found = world.gather({s.name: (s.documents.fingerprint, contents_of(s.documents)) for s in opened})
    differing = {
        f"data source {name!r}: rank {rank} finds other documents than rank 0; give all machines the same files"
        for rank, identities in enumerate(found)
        for name in identities
        if not _same_documents(*identities[name], *found[0][name])
    }
    if differing:
        raise ConfigError(*sorted(differing))
    return opened


def _same_documents(own_print: str, own: Contents, its_print: str, its: Contents) -> bool:
    return own_print == its_print and all(
        same_content(one, other) for (_, one), (_, other) in zip(own, its, strict=True)
    )


def data_settings(config: JobConfig, num_streams: int) -> DataSettings:
    """The part of a config that decides about its documents and their order."""
    validation = config.validation
    return DataSettings(
        config.data,
        seed=config.debug.seed if config.data.seed is None else config.data.seed,
        num_streams=num_streams,
        holdout_fraction=0.0 if validation.sources else validation.holdout_fraction,
        folder=Path(config.job.dump_folder) / "data",
    )


@dataclass(frozen=True)
class Listings:
    """Files of each source that rank 0 found, and problems of those that it could not list."""

    found: dict[str, ListingJson | None]
    problems: dict[str, list[str]]


def list_all(sources: Sequence[Source], context: SourceContext) -> Listings:
    """List every source that needs it, and collect what is wrong with them."""
    found: dict[str, ListingJson | None] = {}
    problems: dict[str, list[str]] = {}
    for source in sources:
        try:
            found[source.name] = list_source(source, context)
        except ConfigError as error:
            problems[source.name] = error.problems
    return Listings(found, problems)


def open_all(sources: Sequence[Source], listings: Listings, context: SourceContext) -> list[MixtureSource]:
    """Open every source that could be listed.

    Raises:
        ConfigError: with the problems of all sources.
        Preempted: this process was asked to stop.
    """
    opened: list[MixtureSource] = []
    problems: list[str] = []
    for source in until_stopped(sources):
        if source.name in listings.problems:
            problems += listings.problems[source.name]
            continue
        listing = listings.found[source.name]
        try:
            documents = open_source(source, context, listing)
            opened.append(
                MixtureSource(source.name, documents, source.weight, source.max_epochs, listing, source.special_tokens)
            )
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
    return opened
