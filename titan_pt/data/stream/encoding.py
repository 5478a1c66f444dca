"""Encoders: how a document's text becomes tokens, and which of them have a loss."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from titan_pt.components.tokenizer import Tokenizer


@dataclass(frozen=True)
class Encoded:
    """A document as tokens, its end included."""

    tokens: np.ndarray
    """Token ids, int32; empty where the document is left out."""
    targets: np.ndarray | None
    """Whether each token has a loss where it is predicted; None: all have."""
    num_bytes: int
    """UTF-8 bytes of the text of the tokens that have a loss."""
    left_out: str | None = None
    """Reason why the document is left out, or None."""

    @property
    def bytes_per_token(self) -> float:
        """Mean over the tokens that have a loss, without the last, which ends the document and has no bytes."""
        count = len(self.tokens) if self.targets is None else int(self.targets.sum())
        return self.num_bytes / max(1, count - 1)


class Encoder(Protocol):
    """Interface that makes tokens of texts. Worker processes get a copy of it."""

    def encode(self, text: str, tokenizer: Tokenizer, *, named: bool = False) -> Encoded:
        """The tokens of a text that is not empty.

        Args:
            named: names of special tokens in the text stand for these tokens.

        Raises:
            ValueError: the text is not what it has to be; says what is wrong.
        """
        ...

    def fingerprint(self, tokenizer: Tokenizer) -> str:
        """Hash that changes when the tokens of a text may; the tokenizer has one of its own."""
        ...


@dataclass(frozen=True)
class PlainText:
    """Encoder of plain text: its tokens and the end-of-document token, all with a loss."""

    def encode(self, text: str, tokenizer: Tokenizer, *, named: bool = False) -> Encoded:
        if named:
            from titan_pt.components.named_tokens import encode_named

        ids = encode_named(tokenizer, text) if named else tokenizer.encode(text)
        tokens = np.empty(len(ids) + 1, dtype=np.int32)  # not a list: a document may be a whole library
        tokens[:-1], tokens[-1] = ids, tokenizer.eos_id
        return Encoded(tokens, None, len(text.encode("utf-8", "surrogatepass")))

    def fingerprint(self, tokenizer: Tokenizer) -> str:
        return "text"


PLAIN_TEXT = PlainText()
