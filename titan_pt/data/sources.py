"""Sets of documents with random access: embedded ones, local files, hub datasets, and a user's own."""

import errno
import hashlib
import json
import logging
import os
import random
import sysconfig
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import pyarrow.compute

from titan_pt.components.folders import make_writable
from titan_pt.config.errors import ConfigError, nearest, one_of, shown
from titan_pt.config.job_config import Source
from titan_pt.data.arithmetic import LEVELS, make_problem, num_problems, problem
from titan_pt.data.files import checked_text, matching_files, quiet_datasets, read_texts
from titan_pt.outcome import Preempted

logger = logging.getLogger("titan_pt")

# Part of what names a converted file in the cache: raise it when titan_pt/data/files.py cuts or reads differently.
_CONVERSION = 1
# Of a local file its name, its size and this much of its end are its identity: checksums and footers are there.
_TAIL_BYTES = 1 << 16


class Documents(Protocol):
    """A fixed, ordered set of texts."""

    fingerprint: str
    """Changes when the documents do."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> str: ...


SourceFactory = Callable[[Source, int], Documents]
_SOURCES: dict[str, SourceFactory] = {}


def register_source(name: str, factory: SourceFactory) -> None:
    """Make `[[data.sources]] name` known: `factory(source, seed)` gives its documents."""
    if name in _SOURCES:
        raise ValueError(f"source {name!r} is registered already")
    _SOURCES[name] = factory


def open_source(source: Source, *, seed: int, cache_dir: str | None) -> Documents:
    """The documents of one `[[data.sources]]` table.

    Raises:
        ConfigError: an unknown name, missing files, an unreadable file or row, a missing column, no documents.
        Preempted: this process was asked to stop while files were converted.
    """
    where = f"data source {source.name!r}"
    check_source(source)
    if source.path is not None or source.dataset is not None:
        documents: Documents = _read(source, where, cache_dir)
    else:
        documents = _Checked(_SOURCES[source.name](source, seed), where)
    if len(documents) == 0:
        raise ConfigError(f"{where}: holds no documents")
    return documents


def check_sources(sources: Iterable[Source]) -> None:
    """Raise a ConfigError with all that can be told without opening a file or asking the hub: names, globs, kinds."""
    problems: list[str] = []
    for source in sources:
        try:
            check_source(source)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(*problems)


def check_source(source: Source) -> None:
    """The same for one source."""
    where = f"data source {source.name!r}"
    if source.path is not None:
        try:
            matching_files(source.path)
        except ConfigError as error:
            raise ConfigError(*(f"{where}: {problem}" for problem in error.problems)) from None
    elif source.dataset is None and source.name not in _SOURCES:
        raise ConfigError(
            f"{where}: not built in{nearest(source.name, _SOURCES)}; built in are {one_of(_SOURCES)}; "
            "for documents of your own give path (local files) or dataset (the hub)"
        )


def _read(source: Source, where: str, cache_dir: str | None) -> Documents:
    _check_cache(cache_dir)
    try:
        return (_local_files if source.path else _hub_dataset)(source, where, cache_dir)
    except Exception as error:  # `datasets` and what it calls raise many kinds; the cause's text is what helps
        cause = error.__cause__ or error
        if isinstance(cause, Preempted):
            raise cause from None
        if isinstance(cause, ConfigError):
            raise ConfigError(*(f"{where}: {problem}" for problem in cause.problems)) from None
        way_out = "; set data.cache_dir and HF_HOME to folders with space to write" if _cannot_write(cause) else ""
        raise ConfigError(f"{where}: cannot be read: {type(cause).__name__}: {cause}{way_out}") from error


def _check_cache(cache_dir: str | None) -> None:
    """Raise a ConfigError unless Arrow files can be written: the source would be blamed for it."""
    own = quiet_datasets().config.HF_DATASETS_CACHE
    name = f"data.cache_dir = {cache_dir!r}" if cache_dir else f"data.cache_dir, unset, so {own} of HF_HOME"
    make_writable(Path(cache_dir or own).expanduser(), name)


def _cannot_write(error: BaseException) -> bool:
    """Whether the library's own files are in the way: a source's would have been named by a ConfigError."""
    return isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT)


class _Checked:
    """Documents of a registered source, which may give anything."""

    def __init__(self, documents: Documents, where: str) -> None:
        self._documents, self._where = documents, where
        self.fingerprint = documents.fingerprint

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index: int) -> str:
        return checked_text(self._documents[index], f"{self._where}: document {index}")


class PythonStdlib:
    """The Python standard library's source files, without its tests: text that every machine has."""

    def __init__(self) -> None:
        root = Path(sysconfig.get_paths()["stdlib"])
        skipped = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib-dynload"}
        files = sorted(path for path in root.rglob("*.py") if not skipped.intersection(path.relative_to(root).parts))
        # A distribution may leave links to nowhere.
        self._files = [path for path in files if path.is_file() and path.stat().st_size > 0]
        listing = [f"{path.relative_to(root)}:{path.stat().st_size}" for path in self._files]
        self.fingerprint = _digest(listing)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> str:
        return self._files[index].read_text(encoding="utf-8", errors="replace")


class Arithmetic:
    """Generated questions whose answers end in `#### <number>`: sums, differences and products of small numbers."""

    size = 1_000_000

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.fingerprint = f"arithmetic-1-{seed}"

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < self.size:
            raise IndexError(index)
        rng = random.Random(f"{self._seed}/{index}")
        a, b = (rng.randrange(10 ** rng.randint(1, 3)) for _ in range(2))
        operation = rng.choice("+-*")
        if operation == "*":
            a, b = a % 100, b % 10
        return make_problem(a, operation, b).document


class ArithmeticLevel:
    """All problems of one level of difficulty, each once.

    Args:
        plain: without the marker `#### <number>`.
    """

    def __init__(self, level: int, *, plain: bool) -> None:
        self._level, self._plain = level, plain
        self.fingerprint = f"arithmetic-1-level-{level}{'-plain' if plain else ''}"

    def __len__(self) -> int:
        return num_problems(self._level)

    def __getitem__(self, index: int) -> str:
        made = problem(self._level, index)
        return made.plain_document if self._plain else made.document


class ArrowColumn:
    """The text column of a `datasets.Dataset`: memory-mapped, so that its size does not matter."""

    def __init__(self, dataset: Any, column: str, where: str, fingerprint: str) -> None:
        if column not in dataset.column_names:
            raise ConfigError(f"no column {column!r}; it has {one_of(dataset.column_names)}; set text_field")
        kind = getattr(dataset.features[column], "dtype", None)
        if kind not in ("string", "large_string"):
            raise ConfigError(f"column {column!r} holds {kind or 'nested values'}, not text; set text_field")
        self._rows, self._column = dataset.select_columns([column]), column
        self.fingerprint = fingerprint
        self._check_rows(where)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> str:
        return self._rows[index][self._column]

    def _check_rows(self, where: str) -> None:
        """Tell at the start, not hours later, which texts are missing. Looks at lengths alone, so it is quick."""
        num_rows = num_empty = 0
        for chunk in self._rows.data.column(self._column).chunks:
            if chunk.null_count:
                checked_text(None, f"row {num_rows + chunk.is_null().index(True).as_py()}: {self._column!r}")
            num_rows += len(chunk)
            num_empty += pyarrow.compute.equal(pyarrow.compute.binary_length(chunk), 0).sum().as_py() or 0
        if num_empty == num_rows:
            raise ConfigError(f"column {self._column!r} holds no text in any of {num_rows:,} rows; set text_field")
        if num_empty:
            logger.warning(f"{where}: {num_empty:,} of {num_rows:,} documents are empty and are passed over")


def _local_files(source: Source, where: str, cache_dir: str | None) -> Documents:
    column = source.text_field or "text"
    files = matching_files(source.path or "")
    identities = [_file_identity(path) for path in files]
    library = quiet_datasets()
    dataset = library.Dataset.from_generator(
        read_texts,
        features=library.Features(text=library.Value("large_string")),
        cache_dir=cache_dir,
        writer_batch_size=256,  # documents held in memory; one may be a whole book
        gen_kwargs={  # no lists: the library would make a call of each of their items
            "files": tuple(files),
            "column": column,
            # From here on only to convert again when a file or the conversion has changed.
            "identities": tuple(identities),
            "changed": tuple(os.stat(path).st_mtime_ns for path in files),
            "version": _CONVERSION,
        },
    )
    return ArrowColumn(dataset, "text", where, _digest([column, *identities]))


def _hub_dataset(source: Source, where: str, cache_dir: str | None) -> Documents:
    split, column = source.split or "train", source.text_field or "text"
    dataset = quiet_datasets().load_dataset(
        source.dataset, name=source.subset, split=split, revision=source.revision, cache_dir=cache_dir
    )
    origin = [str(len(dataset)), column, str(source.dataset), str(source.subset), split, str(source.revision)]
    return ArrowColumn(dataset, column, where, _digest(origin))


def _file_identity(path: str) -> str:
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL_BYTES))
        return f"{Path(path).name}:{size}:{hashlib.sha256(file.read()).hexdigest()}"


def _digest(parts: list[str]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _python_stdlib(source: Source, _seed: int) -> Documents:
    if source.subset is not None:
        raise ConfigError(f"data source {source.name!r}: subset = {shown(source.subset)}: it has none; leave it out")
    return PythonStdlib()


def _arithmetic(source: Source, seed: int) -> Documents:
    if source.subset is None:
        return Arithmetic(seed)
    levels = {f"level-{level}": level for level in LEVELS}
    if source.subset not in levels:
        allowed = "; ".join(f'"{name}" ({LEVELS[level]})' for name, level in levels.items())
        raise ConfigError(
            f"data source {source.name!r}: subset = {shown(source.subset)}: unknown; allowed are {allowed}; "
            "leave it out for endless problems of all kinds"
        )
    return ArithmeticLevel(levels[source.subset], plain=False)


def _arithmetic_plain(source: Source, seed: int) -> Documents:
    names = {f"level-{level}": level for level in LEVELS}
    if source.subset not in names:
        raise ConfigError(f"data source {source.name!r}: subset = {shown(source.subset)}: want one of {one_of(names)}")
    return ArithmeticLevel(names[source.subset], plain=True)


register_source("python_stdlib", _python_stdlib)
register_source("arithmetic", _arithmetic)
register_source("arithmetic_plain", _arithmetic_plain)
