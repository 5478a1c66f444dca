"""Loss, perplexity and bits per byte of a text."""

import itertools
import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from titan_pt.components.loss import ChunkedCrossEntropy
from titan_pt.components.tokenizer import Tokenizer, name_in
from titan_pt.config.errors import ConfigError, shown
from titan_pt.data.sources.local import checked_text, matching_files, read_rows
from titan_pt.data.stream.batch import IGNORED
from titan_pt.generation.engine import NonFiniteLogits
from titan_pt.models.transformer.model import Transformer
from titan_pt.run.files import read_text

logger = logging.getLogger("titan_pt")

# Most tokens of one forward, padding included.
_BATCH_TOKENS = 2**14


@dataclass(frozen=True)
class TextLoss:
    """Loss of documents that are joined end to end."""

    loss: float
    """Mean loss in nats over all tokens, end-of-document tokens included."""
    tokens: int
    num_bytes: int
    """UTF-8 bytes, without the end-of-document tokens."""

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))

    @property
    def bits_per_byte(self) -> float:
        """Loss in bits per byte, which is comparable between tokenizers."""
        return self.loss * self.tokens / math.log(2) / self.num_bytes


@torch.no_grad()
def text_loss(model: Transformer, tokenizer: Tokenizer, texts: Iterable[str], seq_len: int) -> TextLoss:
    """The loss of every token, each predicted once from those before it in its row of `seq_len` tokens.

    Like the validation during training, documents end with the end-of-document token, which is predicted too, and rows
    are cut regardless of where documents end. The first document also begins after such a token.

    Raises:
        ConfigError: there is no text.
        NonFiniteLogits: the loss is not finite.
    """
    count = _ByteCount()
    stream = _tokens(tokenizer, texts, count)
    loss_sum, num_tokens = 0.0, 0
    rows_per_batch = max(1, _BATCH_TOKENS // seq_len)
    rows = _rows(stream, seq_len)
    while batch := list(itertools.islice(rows, rows_per_batch)):
        tokens_BL = torch.tensor([row[:-1] + [tokenizer.eos_id] * (seq_len + 1 - len(row)) for row in batch])
        targets_BL = torch.tensor([row[1:] + [IGNORED] * (seq_len + 1 - len(row)) for row in batch])
        device = model.output_weight.device
        losses = model(tokens_BL.to(device), None, ChunkedCrossEntropy().head(targets_BL.to(device)))
        loss_sum += float(losses.cross_entropy_T.double().sum())
        num_tokens += sum(len(row) - 1 for row in batch)
    if not count.num_bytes:
        raise ConfigError("--text: holds no text")
    if not math.isfinite(loss_sum):
        raise NonFiniteLogits("the loss of --text")
    return TextLoss(loss_sum / num_tokens, num_tokens, count.num_bytes)


def read_documents(pattern: str, column: str = "text") -> Iterator[str]:
    """Yield the documents of local files: a .txt file is one document, other files have one in each row.

    Raises:
        ConfigError: no such files, or a row without text.
    """
    for file in matching_files(pattern, "--text"):
        if file.endswith(".txt"):
            yield read_text(Path(file))
            continue
        for place, row in read_rows(file):
            if not isinstance(row.get(column), str):
                raise ConfigError(f"{file}, {place}: {column!r} is {shown(row.get(column))}; want text")
            yield checked_text(row[column], f"{file}, {place}: {column!r}")


@dataclass
class _ByteCount:
    num_bytes: int = 0


def _tokens(tokenizer: Tokenizer, texts: Iterable[str], count: _ByteCount) -> Iterator[int]:
    yield tokenizer.eos_id
    told = False
    for text in texts:
        name = None if told else name_in(tokenizer, text)
        if name is not None:
            told = True
            logger.warning(f"--text: holds {name!r}, which is read as text, as in all data")
        count.num_bytes += len(text.encode("utf-8", "surrogatepass"))
        yield from tokenizer.encode(text)
        yield tokenizer.eos_id


def _rows(stream: Iterator[int], seq_len: int) -> Iterator[list[int]]:
    """Yield rows of seq_len + 1 tokens; each begins with the last token of the one before, the last may be shorter."""
    row = list(itertools.islice(stream, seq_len + 1))
    while len(row) > 1:
        yield row
        row = [row[-1], *itertools.islice(stream, seq_len)]
