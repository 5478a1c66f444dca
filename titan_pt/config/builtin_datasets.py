"""Datasets that a `[[data.sources]]` table means by its name alone; the list is in `builtin_datasets.toml`."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from titan_pt.config.schema.job_config import Source

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class BuiltinDataset:
    """A dataset of the hub, and how its rows become texts."""

    dataset: str
    formatter: str
    licence: str
    """As far as known, unchecked."""
    subset: str | None = None
    train_only: bool = False
    """Whether only the split "train" may be trained on; the dataset's other splits are evaluation sets."""
    tokens: dict[str, float] = field(default_factory=dict)
    """About how many tokens of GPT-2 each subset's training split has, "" where there are no subsets."""
    patterns: dict[str, str] | None = None
    """The files of each subset, where the hub need not be asked which they are."""


_TEXT = Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")
BUILTIN_DATASETS = {name: BuiltinDataset(**table) for name, table in tomllib.loads(_TEXT).items()}


def complete(source: Source) -> Source:
    """The source with what its name says and its table does not."""
    builtin = BUILTIN_DATASETS.get(source.name)
    if builtin is None or (source.dataset is not None and source.dataset != builtin.dataset):
        return source
    values: dict[str, str | None] = {} if source.formatter or source.text_field else {"formatter": builtin.formatter}
    if source.path is None:
        values |= {"dataset": builtin.dataset, "subset": source.subset or builtin.subset}
    return source.model_copy(update=values)
