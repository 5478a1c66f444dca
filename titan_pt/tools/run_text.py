"""The loss of local texts by a run's own rules: the rows, the mask and the precision of its validation."""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from titan_pt.config.errors import ConfigError, one_of, shown
from titan_pt.config.schema.data import Source
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.config.schema.sft import SftConfig
from titan_pt.data.sources.alone import open_alone
from titan_pt.data.sources.local import matching_files
from titan_pt.data.sources.opening import data_settings
from titan_pt.data.sources.rows import read_rows
from titan_pt.data.stream.encoding import PLAIN_TEXT, Encoder
from titan_pt.data.stream.mixture import tokenize_mixture
from titan_pt.data.stream.row import PackedRow
from titan_pt.data.stream.stream import Stream
from titan_pt.evaluation.text import TextLoss, read_documents, rows_loss, text_loss
from titan_pt.hf.model_source import ModelSource
from titan_pt.models.transformer.model import Transformer
from titan_pt.run.paths import escape_path, expand_path
from titan_pt.trainers.sft.records import record_encoder, with_records

_DEFAULT_SEQ_LEN = 2048
# What the rows of a validation depend on; a run's other keys may be of another version or of a plugin.
_READ = {
    "data": ("packing", "seed"),
    "debug": ("seed",),
    "training": ("seq_len", "document_mask", "mixed_precision_param"),
    "validation": ("local_batch_size",),
    "sft": ("on_bad_record", "overlong"),
}


@dataclass(frozen=True)
class TextOptions:
    """How a text is laid into rows and read."""

    seq_len: int
    """Tokens of a row."""
    document_mask: bool
    """Whether documents that share a row are kept apart."""
    precision: str
    """Type to compute in."""

    @classmethod
    def of_run(cls, source: ModelSource) -> "TextOptions":
        """The options of a run's validation; of a Hugging Face folder those of a plain text."""
        longest, training = source.args.max_seq_len, source.config.get("training", {})
        default = "float32" if not torch.cuda.is_available() else "bfloat16"
        return cls(
            seq_len=min(longest, training.get("seq_len", _DEFAULT_SEQ_LEN)),
            # Completions of grpo never share a row with others, whatever the config says.
            document_mask=training.get("document_mask", False) or source.trainer == "grpo",
            precision=training.get("mixed_precision_param", default),
        )

    def changed(self, **values: Any) -> "TextOptions":
        """A copy with the values that are not None."""
        return replace(self, **{name: value for name, value in values.items() if value is not None})


def measure_text(
    source: ModelSource, pattern: str, options: TextOptions, load: Callable[[str], Transformer]
) -> tuple[TextLoss, TextOptions]:
    """The loss of local texts, and the options with which it was measured.

    A text of a run is laid into rows as its validation does: the same order of documents, packing and targets, so that
    the documents of the run's validation give its `val_loss`. The order is keyed by the name of the source: that of
    the run's own source of these files, else that of its only source of validation.

    Args:
        load: precision -> the model.

    Raises:
        ConfigError: files or rows that cannot be read; seq_len is more than the model reads.
    """
    longest = source.args.max_seq_len
    if options.seq_len > longest:
        raise ConfigError(f"--seq_len = {options.seq_len}: the model reads at most {longest} tokens")
    files = matching_files(pattern, "--text")
    is_text = all(file.endswith((".txt", ".jsonl")) for file in files)  # others are packed
    total_bytes = sum(map(os.path.getsize, files)) if is_text else None
    if not source.config:
        texts = read_documents(pattern)
        model = load(options.precision)
        masked = options.document_mask
        found = text_loss(
            model, source.tokenizer, texts, options.seq_len, document_mask=masked, total_bytes=total_bytes
        )
        return found, options
    with tempfile.TemporaryDirectory(prefix="titan_pt_text_") as cache:
        config, rows = _rows(source, pattern, files, options.seq_len, cache)
        size = config.validation.local_batch_size
        model = load(options.precision)
        found = rows_loss(
            model, rows, document_mask=options.document_mask, rows_per_batch=size, total_bytes=total_bytes
        )
        return found, options


def _rows(
    source: ModelSource, pattern: str, files: Sequence[str], seq_len: int, cache: str
) -> tuple[JobConfig, Iterator[PackedRow]]:
    config = _config(source, cache)
    sources = _own_sources(source.config, files) or [_foreign(source, files, pattern)]
    encoder: Encoder = PLAIN_TEXT
    if isinstance(config, SftConfig) and sources[0].formatter != "text":
        data = config.data.model_copy(update={"sources": sources})
        sources = with_records(config.model_copy(update={"data": data})).data.sources
        encoder = record_encoder(config)
    once = [replace(s, max_epochs=min(1.0, s.max_epochs or 1.0)) for s in open_alone(sources, config)]
    settings = replace(data_settings(config, 1), holdout_fraction=0.0)
    mixture = tokenize_mixture(once, settings, source.tokenizer, encoder=encoder)
    return config, iter(Stream(replace(mixture, spent={one.name for one in once}), 0, 1, seq_len))


def _config(source: ModelSource, cache: str) -> JobConfig:
    """The run's config, as far as rows depend on it; it writes nothing into the run's folders."""
    tables: dict[str, dict[str, Any]] = {
        name: {key: table[key] for key in keys if key in table}
        for name, keys in _READ.items()
        if (table := source.config.get(name))
    }
    tables["data"] = {**tables.get("data", {}), "cache_dir": escape_path(cache)}
    tables["job"] = {"dump_folder": escape_path(cache)}
    if source.trainer == "sft":
        return SftConfig.model_validate(tables)
    tables.pop("sft", None)
    return JobConfig.model_validate(tables)


def _own_sources(tables: Any, files: Sequence[str]) -> list[Source]:
    """The run's source of these files, or all of its validation where these are its files; else none."""
    wanted = {os.path.realpath(file) for file in files}
    validation = tables.get("validation", {}).get("sources", [])
    for table in [*validation, *tables.get("data", {}).get("sources", [])]:
        if _real(table.get("path")) == wanted:
            return [Source.model_validate(table)]
    found = [_real(table.get("path")) for table in validation]
    return [Source.model_validate(table) for table in validation] if found and set().union(*found) == wanted else []


def _foreign(run: ModelSource, files: Sequence[str], pattern: str) -> Source:
    """Files that the run did not name, under the name of its only source of validation, which decides their order.

    They are read as that source is, unless they have texts in the column "text" alone.

    Raises:
        ConfigError: the first row has no text.
    """
    validation = run.config.get("validation", {}).get("sources", [])
    only = validation[0] if len(validation) == 1 else {}
    named = only.get("special_tokens", False)
    plain = Source(name=only.get("name", "text"), path=escape_path(pattern), formatter="text", special_tokens=named)
    if files[0].endswith(".txt"):
        return plain
    _, row = next(read_rows(files[0]), ("", {}))
    known = {key: only[key] for key in ("formatter", "text_field") if key in only}
    alike = Source.model_validate({**plain.model_dump(exclude_unset=True, exclude={"formatter"}), **known})
    columns = {"text", alike.text_field or "text"}
    # Records are the default of fine-tuning alone.
    texts = alike.formatter == "text" or (alike.formatter is None and run.trainer != "sft")
    if texts and row and not columns & row.keys():
        wanted = " or ".join(sorted(columns))
        raise ConfigError(f"--text = {shown(pattern)}: rows need the column {wanted}; {files[0]} has {one_of(row)}")
    return plain if "text" in row and (not texts or alike.text_field not in row) else alike


def _real(pattern: str | None) -> set[str]:
    try:
        return {os.path.realpath(file) for file in matching_files(expand_path(pattern))} if pattern else set()
    except ValueError:  # a ConfigError too
        return set()
