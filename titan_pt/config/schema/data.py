"""The table [data] with its [[data.sources]]."""

from typing import Annotated, Literal

from pydantic import Field

from titan_pt.config.schema.section import Count, Name, PathName, Positive, PositiveInt, Section, Timeout
from titan_pt.config.schema.values import Size


class Source(Section):
    """[[data.sources]] one set of documents."""

    name: Name
    """Name in logs. Without `path` or `dataset`: a built-in source (fineweb_edu, climbmix, dclm, finemath,
    open_web_math, gsm8k, medqa, python_stdlib, arithmetic, sorting, worked_problems) or a registered one."""
    path: PathName | None = None
    """Local files by glob: .jsonl, .jsonl.gz, .json, .parquet, .txt; a folder of titan_pt.tools.prepare; or the http(s)
    address of a .parquet file, in which {00..13} stands for each of these numbers."""
    dataset: PathName | None = None
    """Dataset of the Hugging Face hub, or a local folder: of data files, or written by `save_to_disk`. Parquet is
    streamed, else it is downloaded whole."""
    subset: Name | None = None
    """Configuration of `dataset`, such as "sample-10BT"."""
    split: Name | None = None
    """Split of `dataset`. Unset: "train"."""
    revision: Name | None = None
    """Commit, tag or branch of `dataset`. A run keeps to the commit that it found at its first start."""
    text_field: Name | None = None
    """Column that holds the text of `path` or `dataset`. Unset: "text"."""
    formatter: Name | None = None
    """How a row becomes a text: "text" (the column text_field), "medqa", "gsm8k", or a registered name; in sft how it
    becomes a record: "chat", "medqa", "gsm8k", or a registered name. Unset: that of a built-in name, else the first."""
    special_tokens: bool = False
    """Read the names of special tokens in its texts, such as "<|im_end|>", as these tokens. Off: they are text, as in
    all data; the log warns of the first."""
    weight: Positive = 1.0
    """Share of the training tokens (tokens, not documents), relative to the other sources' weights."""
    max_epochs: Positive | None = None
    """Most passes over this source; a spent source's share goes to the others. A resume may change it. Unset: none."""


class Data(Section):
    """[data] documents and their order."""

    sources: list[Source] = []
    """The training mixture: a TOML array of tables."""
    num_streams: PositiveInt | None = None
    """Logical streams; divides the global batch in rows, the data ranks divide it. Unset: those of the checkpoint if
    they fit, else the largest divisor <= 64 of the batch, or where that follows from the ranks, of local_batch_size."""
    seed: int | None = None
    """Seed of the document order. Unset: debug.seed."""
    packing: Literal["concat", "best_fit"] = "concat"
    """"concat" lays documents end to end and cuts rows; "best_fit" cuts none that fits a row, and pads instead."""
    prefetch_steps: Count = 2
    """Global batches prepared ahead; 0 prepares each when it is asked for."""
    num_workers: Count = 0
    """Processes that read and tokenise for one rank; 0: a thread does. Neither changes the order of the documents."""
    cache_dir: PathName | None = None
    """Folder of what was read once. Unset: ~/.cache/titan_pt for row groups of parquet files and for the hashes of
    files, and for the Arrow files that `datasets` makes of other kinds the library's own ($HF_DATASETS_CACHE)."""
    cache_bytes: Annotated[Size, Field(gt=0)] = 20_000_000_000
    """Most that the row groups in cache_dir take, about 5 MB each; the least recently used go first."""
    request_timeout_seconds: Timeout = 60.0
    """One attempt to read a row group over the network; it is made again, after growing pauses, until it succeeds."""
    verify: Literal["auto", "always"] = "auto"
    """What comes over a network: "auto" compares checksums where the file or the hub has any; "always" reads all else
    twice, at twice the traffic, and compares."""
    stall_policy: Literal["wait", "substitute"] = "wait"
    """When a row group does not come: "wait" for it, or "substitute": read later ones first, and remember that."""
    substitute_after_seconds: Timeout = 600.0
    """Time that "substitute" waits for a row group before it reads later ones."""
    max_stall_seconds: Timeout = 3600.0
    """A run that gets no data for so long saves a checkpoint and ends with exit code 75; a start fails after it."""
