"""Counts the steps of a run over finite sources, by packing the lengths of its documents."""

import hashlib
from dataclasses import dataclass, field, replace

import numpy as np

from titan_pt.components.tokenizer import Tokenizer
from titan_pt.config.errors import ConfigError
from titan_pt.config.run_size import RunSize
from titan_pt.data.sources.documents import SkipOptions
from titan_pt.data.stream.encoding import Encoded, Encoder
from titan_pt.data.stream.mixture import TokenizedMixture
from titan_pt.data.stream.stream import Stream
from titan_pt.run.signals import until_stopped

# Beyond this many documents, over all passes, counting would take longer than a user waits.
_MOST = 2_000_000


def count_steps(mixture: TokenizedMixture, run_size: RunSize, seq_len: int, key: str) -> int:
    """Count the steps until every source has given its max_epochs.

    The streams are run as in training, with the length of each document in place of its tokens: it is tokenised once,
    whatever the number of passes.

    Args:
        key: the setting that wants to know, for messages.

    Raises:
        ConfigError: a source has no max_epochs, is read row group by row group, or is too large to be counted.
    """
    for source in mixture.sources:
        count = len(source.documents) * (source.max_epochs or float("inf"))
        if source.by_row_group or count > _MOST:
            raise ConfigError(
                f"{key}: data source {source.name!r} has {len(source.documents):,} documents, too many to count its "
                "rows before the first step; give training.steps or tokens, and the source max_epochs"
            )
    counted = replace(
        mixture,
        skip=SkipOptions(),
        encoder=_Lengths(mixture.encoder),
        spent={source.name for source in mixture.sources},  # that they end is what they are for
    )
    streams = [Stream(counted, s, run_size.num_streams, seq_len) for s in range(run_size.num_streams)]
    rows = [sum(1 for _ in until_stopped(stream)) for stream in streams]
    return max(1, -(-max(rows) * run_size.num_streams // run_size.rows))


@dataclass(frozen=True)
class _Lengths:
    """Encoder that gives zeros, as many as another encoder gives tokens."""

    inner: Encoder
    known: dict[bytes, int] = field(default_factory=dict)

    def encode(self, text: str, tokenizer: Tokenizer, *, named: bool = False) -> Encoded:
        key = bytes([named]) + hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if key not in self.known:
            self.known[key] = len(self.inner.encode(text, tokenizer, named=named).tokens)
        return Encoded(np.zeros(self.known[key], dtype=np.int32), None, 0)

    def fingerprint(self, tokenizer: Tokenizer) -> str:
        return self.inner.fingerprint(tokenizer)
