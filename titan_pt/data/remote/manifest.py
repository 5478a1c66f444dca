"""The files that a run began with, kept in its folder: a resume reads the same ones."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.job_config import Source
from titan_pt.data.remote.row_groups import Listing
from titan_pt.data.sources.registry import ListingJson, is_address
from titan_pt.run.files import parse_json, write_atomic
from titan_pt.run.outgoing import redact, redacted

logger = logging.getLogger("titan_pt")


@dataclass(frozen=True)
class Manifest:
    """Listings of remote sources in `units.json`, by what was asked for."""

    path: Path
    known: dict[str, ListingJson]

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """The manifest of a run's data folder; empty where there is none, or one that is no JSON.

        Raises:
            ConfigError: it cannot be read, or its content was changed.
        """
        path = folder / "units.json"
        if not path.is_file():
            return cls(path, {})
        try:
            known = parse_json(path.read_bytes())
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
        except ValueError as error:
            logger.warning(f"{path}: damaged: {error}; the data is listed anew, and a resume compares it")
            return cls(path, {})
        try:
            for listing in known.values():
                Listing.from_json(listing)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ConfigError(
                f"{path}: damaged: {error}; restore it, or remove it to list the data anew (a resume then checks it)"
            ) from error
        return cls(path, known)

    def listing(self, source: Source) -> Listing | None:
        """The files that the run began with, of a source as `complete` makes it."""
        found = self.known.get(_key(source)) or self.known.get(_key(source, lambda path: path))
        return Listing.from_json(found) if found else None

    def add(self, source: Source, listing: Listing) -> None:
        """Keep the files of a remote source."""
        if not all(is_address(file.location) for file in listing.files):
            return
        self.known[_key(source)] = redacted(listing.to_json())
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path, json.dumps(self.known))


def _key(source: Source, named: Callable[[str], str] = redact) -> str:
    """What was asked for, however it was signed; up to release 0.15 as it was signed."""
    return json.dumps(
        [source.path and named(source.path), source.dataset, source.subset, source.split, source.revision]
    )
