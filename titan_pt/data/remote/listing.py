"""Lists the parquet files of a source at a fixed revision, and their row groups. Rank 0 does this, once for a run."""

import fnmatch
import itertools
import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FuturesTimeout
from pathlib import Path
from typing import Any, TypeVar

import pyarrow

from titan_pt.config.builtin_datasets import BUILTIN_DATASETS
from titan_pt.config.errors import ConfigError, one_of
from titan_pt.config.schema.job_config import Source
from titan_pt.data.remote.hub import attempt, bound_answers
from titan_pt.data.remote.parquet import ParquetStore, describe_local
from titan_pt.data.remote.retry import Attempts, Patience, Refused, Transient, Unreadable, persist
from titan_pt.data.remote.row_groups import Listing, RowGroupFile
from titan_pt.data.sources.identity import KnownFiles
from titan_pt.data.sources.parquet_rows import check_columns
from titan_pt.run.outgoing import redact

logger = logging.getLogger("titan_pt")

T = TypeVar("T")

_FOOTERS_AT_ONCE = 16
_MOST_FILES = 1_000_000


def list_local(files: list[str], columns: Sequence[str], known: KnownFiles) -> Listing:
    """List the row groups of local parquet files.

    Raises:
        ConfigError: a file is not parquet, or lacks one of the columns.
    """
    found = []
    for file, about in zip(files, known.facts(files, "parquet", _described_local), strict=True):
        check_columns(about["columns"], tuple(columns), file)
        rows = tuple(count for count, times in about["rows"] for _ in range(times))
        found.append(RowGroupFile(Path(file).name, file, about["size"], about["end"], rows))
    return Listing("local files", tuple(found))


def _described_local(file: str) -> dict[str, Any]:
    try:
        return describe_local(file)
    except (OSError, pyarrow.ArrowException) as error:
        raise ConfigError(f"{file}: cannot be read: {type(error).__name__}: {error}") from error


def list_addresses(pattern: str, store: ParquetStore) -> Listing:
    """List the row groups of .parquet files at http(s) addresses; `{0..3}` in a pattern stands for each number.

    Raises:
        ConfigError: not a .parquet address, none, or it cannot be read.
    """
    addresses = list(itertools.islice(expand(pattern), _MOST_FILES + 1))
    if len(addresses) > _MOST_FILES:
        raise ConfigError(f"path = {redact(pattern)!r}: stands for more than {_MOST_FILES:,} addresses")
    if not all(address.split("?")[0].endswith(".parquet") for address in addresses):
        raise ConfigError(f"path = {redact(pattern)!r}: an address must be of a .parquet file")
    if not addresses:
        raise ConfigError(
            f"path = {redact(pattern)!r}: it stands for no address; the smaller number is first, as in {{0..3}}"
        )
    pattern = redact(pattern)
    common = len(pattern.partition("{")[0].rpartition("/")[0]) + 1  # the files of several folders may share a name
    files = {redact(address)[common:]: (address, None) for address in addresses}
    if len(files) < len(addresses):
        raise ConfigError(f"path = {pattern!r}: several of its addresses differ in their secrets alone")
    return _listing(pattern, files, store)


def list_dataset(source: Source, patience: Patience, store: ParquetStore, stop: threading.Event) -> Listing:
    """List the row groups of a dataset of the hub, at a fixed commit; no files where they are not parquet.

    Raises:
        ConfigError: there is no such dataset, revision, subset or split, or it is not for this user.
    """
    from huggingface_hub import HfApi, hf_hub_url

    assert source.dataset is not None
    bound_answers()
    repository, api = source.dataset, HfApi()
    timeout = patience.attempt_seconds
    try:
        info = persist(
            lambda: _listed(
                lambda: api.dataset_info(repository, revision=source.revision, files_metadata=True, timeout=timeout),
                timeout,
            ),
            Attempts(f"dataset {repository}: listing", patience, patience.start_seconds),
            stop,
        )
    except Unreadable as error:
        raise ConfigError(f"cannot be listed: {error}") from error
    found = {file.rfilename: file for file in info.siblings or []}
    card: Any = info.card_data or {}
    logger.info(f"Dataset {repository}@{str(info.sha)[:8]}: licence {_licence(source, card)}")
    try:
        patterns = _patterns(source, card)
    except ConfigError:
        raise
    except (KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(f"the card of {repository} does not say which files are its subsets: {reason}") from error
    names = sorted(name for name in found if any(_matches(name, pattern) for pattern in patterns))
    if not names or not all(name.endswith(".parquet") for name in names):
        return Listing(f"{repository}@{info.sha}", ())
    files = {
        name: (hf_hub_url(repository, name, repo_type="dataset", revision=info.sha), _content_hash(found[name]))
        for name in names
    }
    return _listing(f"{repository}@{info.sha}", files, store)


def expand(pattern: str) -> Iterator[str]:
    """Expand every range of numbers in a pattern: `a{08..10}b` gives a08b, a09b, a10b."""
    match = re.search(r"\{(\d{1,18})\.\.(\d{1,18})\}", pattern)
    if match is None:
        yield pattern
        return
    for number in range(int(match[1]), int(match[2]) + 1):
        for rest in expand(pattern[match.end() :]):
            yield f"{pattern[: match.start()]}{str(number).zfill(len(match[1]))}{rest}"


def _listing(origin: str, files: Mapping[str, tuple[str, str | None]], store: ParquetStore) -> Listing:
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
        futures = [pool.submit(store.describe, name, address, identity) for name, (address, identity) in files.items()]
        try:
            return Listing(origin, tuple(future.result() for future in futures))
        except Unreadable as error:
            raise ConfigError(f"cannot be read: {error}") from error


def _licence(source: Source, card: Any) -> str:
    """What the dataset's card says, else what is known of a built-in source."""
    if told := card.get("license"):
        return f"{told} by its card"
    builtin = BUILTIN_DATASETS.get(source.name)
    return f"{builtin.licence}, as far as known" if builtin and builtin.dataset == source.dataset else "not stated"


def _patterns(source: Source, card: Any) -> list[str]:
    """The files of a subset and split: known for a built-in source, else what the dataset's card says."""
    builtin = BUILTIN_DATASETS.get(source.name)
    if builtin and builtin.patterns and source.dataset == builtin.dataset:
        return [builtin.patterns[source.subset or str(builtin.subset)]]
    configs = card.get("configs") or []
    names = [config.get("config_name", "default") for config in configs]
    if not configs:
        return []
    wished = source.subset or next((c["config_name"] for c in configs if c.get("default")), names[0])
    if wished not in names:
        raise ConfigError(f"subset = {wished!r}: {source.dataset} has {one_of(names)}")
    return _split_patterns(configs[names.index(wished)].get("data_files"), source.split or "train")


def _split_patterns(data_files: Any, split: str) -> list[str]:
    if isinstance(data_files, str):
        data_files = [{"split": "train", "path": data_files}]
    found: list[str] = []
    splits = []
    for entry in data_files or []:
        entry = {"split": "train", "path": entry} if isinstance(entry, str) else entry
        splits.append(entry["split"])
        if entry["split"] == split:
            found += entry["path"] if isinstance(entry["path"], list) else [entry["path"]]
    if splits and not found:
        raise ConfigError(f"split = {split!r}: it has {one_of(splits)}")
    return found


def _matches(name: str, pattern: str) -> bool:
    """Whether a name matches a glob in which * stays inside a folder and ** does not."""
    if "**" in pattern:
        return fnmatch.fnmatchcase(name, pattern.replace("**/", "*"))
    return name.count("/") == pattern.count("/") and fnmatch.fnmatchcase(name, pattern)


def _content_hash(file: Any) -> str | None:
    return file.lfs.sha256 if file.lfs else file.blob_id


def _listed(ask: Callable[[], T], seconds: float) -> T:
    """One request for a listing. The client's time-out counts from the last byte: a trickle would never end."""
    found: Future[T] = Future()

    def run() -> None:
        try:
            found.set_result(attempt(ask))
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=run, name="listing", daemon=True).start()
    try:
        return found.result(2 * seconds)
    except (TimeoutError, FuturesTimeout) as error:
        raise Transient(f"no whole answer within {2 * seconds:g} s") from error
    except ConfigError:
        raise
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:  # a web page, or half of an answer
        raise Refused(f"what came is no list of files: {type(error).__name__}: {error}") from error
