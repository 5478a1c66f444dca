"""Datasets that are downloaded whole: those of the hub whose files are not parquet, and local dataset folders."""

from collections.abc import Iterator
from typing import Any

from titan_pt.config.schema.job_config import Source
from titan_pt.data.permutation import digest
from titan_pt.data.sources.arrow import ArrowColumn
from titan_pt.data.sources.formatters import find_formatter, get_formatter
from titan_pt.data.sources.local import format_row, quiet_datasets
from titan_pt.data.sources.parquet_rows import check_columns


def downloaded_dataset(source: Source, where: str, cache_dir: str | None) -> ArrowColumn:
    """Texts of a dataset of the hub, downloaded whole, or of a local dataset folder."""
    split, formatter = source.split or "train", find_formatter(source)
    library = quiet_datasets()
    dataset = library.load_dataset(
        source.dataset, name=source.subset, split=split, revision=source.revision, cache_dir=cache_dir
    )
    names = [str(source.dataset), str(source.subset), split, str(source.revision)]
    identity = digest([str(len(dataset)), formatter.fingerprint, *names])
    if formatter.name == "text":
        return ArrowColumn(dataset, formatter.columns[0], where, identity)
    check_columns(dataset.column_names, formatter.columns, str(source.dataset))
    texts = library.Dataset.from_generator(
        _formatted_rows,
        features=library.Features(text=library.Value("large_string")),
        cache_dir=cache_dir,
        gen_kwargs={"dataset": dataset, "formatter": formatter.name, "fingerprint": formatter.fingerprint},
    )
    return ArrowColumn(texts, "text", where, identity)


def _formatted_rows(dataset: Any, formatter: str, **_cache_key: Any) -> Iterator[dict[str, str]]:
    found = get_formatter(formatter, "text")
    for number, row in enumerate(dataset.select_columns(list(found.columns)) if found.columns else dataset):
        yield {"text": format_row(found, row, f"row {number}")}
