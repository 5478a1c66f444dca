"""Datasets that a `[[data.sources]]` table means by its name alone. Known without importing a reader."""

from dataclasses import dataclass, field

from titan_pt.config.schema.job_config import Source


@dataclass(frozen=True)
class BuiltinDataset:
    """A dataset of the hub, and how its rows become texts."""

    dataset: str
    formatter: str
    subset: str | None = None
    train_only: bool = False
    """Whether only the split "train" may be trained on; the dataset's other splits are evaluation sets."""
    tokens: dict[str, float] = field(default_factory=dict)
    """About how many tokens of GPT-2 each subset's training split has, "" where there are no subsets."""
    patterns: dict[str, str] | None = None
    """The files of each subset, where the hub need not be asked which they are."""


BUILTIN_DATASETS = {
    "fineweb_edu": BuiltinDataset(
        "HuggingFaceFW/fineweb-edu",
        "text",
        "sample-10BT",
        tokens={"sample-10BT": 1e10, "sample-100BT": 1e11, "sample-350BT": 3.5e11},
        patterns={f"sample-{size}": f"sample/{size}/*.parquet" for size in ("10BT", "100BT", "350BT")},
    ),
    "gsm8k": BuiltinDataset("openai/gsm8k", "gsm8k", "main", train_only=True, tokens={"main": 1.0e6}),
    "medqa": BuiltinDataset("GBaker/MedQA-USMLE-4-options", "medqa", train_only=True, tokens={"": 2.1e6}),
}


def complete(source: Source) -> Source:
    """The source with what its name says and its table does not."""
    builtin = BUILTIN_DATASETS.get(source.name)
    if builtin is None or (source.dataset is not None and source.dataset != builtin.dataset):
        return source
    values: dict[str, str | None] = {}
    if source.formatter is None and source.text_field is None:
        values["formatter"] = builtin.formatter
    if source.path is None:
        values["dataset"] = builtin.dataset
        values["subset"] = source.subset or builtin.subset
    return source.model_copy(update=values)
