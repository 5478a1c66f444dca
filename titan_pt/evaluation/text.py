"""Loss, perplexity and bits per byte of a text."""

import itertools
import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from titan_pt.components.loss import ChunkedCrossEntropy
from titan_pt.components.softcapped_loss import softcapped_chunk
from titan_pt.components.tokenizer import Tokenizer, name_in
from titan_pt.config.errors import ConfigError, shown
from titan_pt.data.sources.local import checked_text, matching_files
from titan_pt.data.sources.rows import read_rows
from titan_pt.data.stream.batch import collate
from titan_pt.data.stream.row import PackedRow
from titan_pt.generation.engine import NonFiniteLogits
from titan_pt.models.transformer.model import Transformer
from titan_pt.run.files import MOST_BYTES, read_text
from titan_pt.run.progress import Progress

logger = logging.getLogger("titan_pt")

# Most tokens of one forward, padding included.
_BATCH_TOKENS = 2**14


@dataclass(frozen=True)
class TextLoss:
    """Loss of documents that are joined end to end."""

    loss: float
    """Mean loss in nats over all tokens that are predicted, end-of-document tokens included."""
    tokens: int
    num_bytes: float
    """UTF-8 bytes of these tokens, without the end-of-document tokens."""

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))

    @property
    def bits_per_byte(self) -> float:
        """Loss in bits per byte, which is comparable between tokenizers."""
        return self.loss * self.tokens / math.log(2) / self.num_bytes


@torch.no_grad()
def rows_loss(
    model: Transformer,
    rows: Iterable[PackedRow],
    *,
    document_mask: bool,
    rows_per_batch: int | None = None,
    total_bytes: float | None = None,
) -> TextLoss:
    """The loss of every token of the rows that has one.

    Args:
        document_mask: keep the documents of a row apart.
        rows_per_batch: rows of one forward; None: as many as make a batch of sensible size.
        total_bytes: of all rows, about, for the time that is left.

    Raises:
        ConfigError: there is no text.
        NonFiniteLogits: the loss is not finite.
    """
    device, loss_sum, num_tokens, num_bytes = model.output_weight.device, 0.0, 0, 0.0
    left, loss, softcap = iter(rows), ChunkedCrossEntropy(), getattr(model.args, "logit_softcap", None)
    if softcap:
        loss = ChunkedCrossEntropy(chunk=softcapped_chunk(softcap))
    with Progress("--text", "bytes", total_bytes) as progress:
        while first := next(left, None):
            size = rows_per_batch or max(1, _BATCH_TOKENS // len(first.tokens))
            some = [first, *itertools.islice(left, size - 1)]
            batch = collate(some).to(device)
            positions = batch.positions_BL if document_mask else None
            losses = model(batch.tokens_BL, positions, loss.head(batch.targets_BL))
            loss_sum += float(losses.cross_entropy_T.double().sum())
            num_tokens += sum(row.num_targets for row in some)
            num_bytes += sum(row.num_bytes for row in some)
            progress.at(num_bytes)
    if not num_bytes:
        raise ConfigError("--text: holds no text")
    if not math.isfinite(loss_sum):
        raise NonFiniteLogits("the loss of --text")
    return TextLoss(loss_sum / num_tokens, num_tokens, num_bytes)


def text_loss(
    model: Transformer,
    tokenizer: Tokenizer,
    texts: Iterable[str],
    seq_len: int,
    *,
    document_mask: bool = False,
    total_bytes: float | None = None,
) -> TextLoss:
    """The loss of the rows of `text_rows`.

    Raises:
        ConfigError: there is no text.
    """
    rows = text_rows(tokenizer, texts, seq_len)
    return rows_loss(model, rows, document_mask=document_mask, total_bytes=total_bytes)


def text_rows(tokenizer: Tokenizer, texts: Iterable[str], seq_len: int) -> Iterator[PackedRow]:
    """Yield rows of texts in their order, for a model whose own rows are not known: each token is predicted once.

    Documents end with the end-of-document token, which is predicted too, and rows are cut regardless of where
    documents end. The first document also begins after such a token, and a row with the last token of the one before.
    """
    stream = _tokens(tokenizer, texts)
    row = list(itertools.islice(stream, seq_len + 1))
    while len(row) > 1:
        yield _row(row, seq_len + 1, tokenizer.eos_id)
        row = [row[-1], *itertools.islice(stream, seq_len)]


def read_documents(pattern: str, column: str = "text") -> Iterator[str]:
    """Yield the documents of local files: a .txt file is one document, other files have one in each row.

    Raises:
        ConfigError: no such files, or a row without text.
    """
    for file in matching_files(pattern, "--text"):
        if file.endswith(".txt"):
            yield read_text(Path(file), 8 * MOST_BYTES)
            continue
        for place, row in read_rows(file):
            if not isinstance(row.get(column), str):
                raise ConfigError(f"{file}, {place}: {column!r} is {shown(row.get(column))}; want text")
            yield checked_text(row[column], f"{file}, {place}: {column!r}")


_Token = tuple[int, bool, float]
"""(id, whether it is a document's first, UTF-8 bytes of text)."""


def _tokens(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[_Token]:
    yield tokenizer.eos_id, True, 0.0
    told = False
    for text in texts:
        name = None if told else name_in(tokenizer, text)
        if name is not None:
            told = True
            logger.warning(f"--text: holds {name!r}, which is read as text, as in all data")
        ids = tokenizer.encode(text)
        share = len(text.encode("utf-8", "surrogatepass")) / max(1, len(ids))
        yield from ((token, place == 0, share) for place, token in enumerate(ids))
        yield tokenizer.eos_id, not ids, 0.0


def _row(tokens: list[_Token], size: int, eos_id: int) -> PackedRow:
    count = len(tokens)
    ids, targets = np.full(size, eos_id, dtype=np.int64), np.zeros(size, dtype=bool)
    ids[:count], targets[1:count] = [token for token, _, _ in tokens], True
    starts = np.array([True, *(is_first for _, is_first, _ in tokens[1:]), *[True] * (size - count)])
    places = np.arange(size)
    positions = places - np.maximum.accumulate(np.where(starts, places, 0))
    num_bytes = math.fsum(share for _, _, share in tokens[1:])
    return PackedRow(ids, targets, positions, np.zeros(size, dtype=np.int64), (), count, num_bytes)
