"""Tokens and passes of each source in a run, as far as they are known without opening a file."""

from dataclasses import dataclass

from titan_pt.config.builtin_datasets import BUILTIN_DATASETS
from titan_pt.config.schema.job_config import JobConfig, Source
from titan_pt.config.schema.sft import SftConfig
from titan_pt.data.truth_table import share_out


@dataclass(frozen=True)
class SourcePlan:
    """One source over the whole run."""

    name: str
    tokens: float
    """Tokens that the run reads from the source."""
    tokens_per_epoch: float | None
    """Tokens of one pass; None if not known."""
    max_epochs: float | None

    @property
    def epochs(self) -> float | None:
        """Passes over the source."""
        return None if self.tokens_per_epoch is None else self.tokens / self.tokens_per_epoch


def plan_sources(config: JobConfig, tokens: int) -> list[SourcePlan]:
    """The sources' shares of the tokens, by weight; a capped source of known size gives no more than its cap."""
    sources = config.data.sources
    sizes = [known_tokens(source, config.tokenizer.name) for source in sources]
    # In fine-tuning sft.epochs is the cap of those that have none of their own.
    every = config.sft.epochs if isinstance(config, SftConfig) else None
    limits = [source.max_epochs or every for source in sources]
    caps = [
        float("inf") if size is None or limit is None else size * limit
        for size, limit in zip(sizes, limits, strict=True)
    ]
    given = share_out(float(tokens), [source.weight for source in sources], caps)
    return [
        SourcePlan(source.name, got, size, limit)
        for source, size, limit, got in zip(sources, sizes, limits, given, strict=True)
    ]


def known_tokens(source: Source, tokenizer: str) -> float | None:
    """GPT-2 tokens of one pass over a built-in hub source; None for files and other tokenizers."""
    builtin = BUILTIN_DATASETS.get(source.name)
    if builtin is None or tokenizer != "gpt2" or source.path or source.dataset not in (None, builtin.dataset):
        return None
    return builtin.tokens.get(source.subset or builtin.subset or "")
