"""Rules of `[[data.sources]]` tables that are more than a path under a name. Imported where there are such."""

from collections.abc import Iterator, Sequence

from titan_pt.config.builtin_datasets import BUILTIN_DATASETS, complete
from titan_pt.config.errors import one_of
from titan_pt.config.schema.job_config import BrokenRule, JobConfig, Source


def no_sources(config: JobConfig) -> BrokenRule:
    """What is wrong with a pretraining run that reads nothing."""
    experiment = (
        ""
        if config.job.config_file
        else "name an experiment with --job.config_file FILE, or by titan-pt train FILE, or "
    )
    return (
        ["data.sources"],
        f'data.sources: empty; {experiment}add a [[data.sources]] table, such as name = "python_stdlib"',
    )


def source_rules(table: str, sources: Sequence[Source]) -> Iterator[BrokenRule]:
    """The broken rules of one array of tables."""
    names = [source.name for source in sources]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield [table], f"{table}: two sources are named {name!r}; names must differ"
    for i, source in enumerate(sources):
        where = f"{table}[{i}] ({source.name!r})"
        if source.path is not None and source.dataset is not None:
            yield [table], f"{where}: path and dataset are both given; give one"
        # A source without files, built in or registered, says itself what its subsets are.
        keys = ("split", "revision") if source.path is None else ("subset", "split", "revision")
        remote = [key for key in keys if getattr(source, key) is not None]
        if remote and complete(source).dataset is None:
            yield [table], f"{where}: {', '.join(remote)} belong to dataset, which is not given"
        builtin = BUILTIN_DATASETS.get(source.name)
        if builtin and builtin.train_only and table == "data.sources" and source.split not in (None, "train"):
            yield [table], f'{where}: split = "{source.split}": is for evaluation; leave split out to train on "train"'
        if builtin and builtin.patterns and not source.path and not source.dataset:
            subset = source.subset or builtin.subset
            if subset not in builtin.patterns:
                yield [table], f"{where}: subset = {subset!r}: known are {one_of(builtin.patterns)}"
