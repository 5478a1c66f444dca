"""How a document's text becomes tokens, and which of them are learnt."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from titan_pt.components.tokenizer import Tokenizer


@dataclass(frozen=True)
class Encoded:
    """A document as tokens, its end included."""

    tokens: np.ndarray
    """int32; none where the document is left out."""
    targets: np.ndarray | None
    """Whether each token is learnt, that is, has a loss where it is predicted; None: all are."""
    num_bytes: int
    """UTF-8 bytes of the text of the tokens that are learnt."""
    left_out: str | None = None
    """Why there are no tokens."""

    @property
    def bytes_per_token(self) -> float:
        """Of the tokens that are learnt, without the last, which ends the document and has no bytes."""
        count = len(self.tokens) if self.targets is None else int(self.targets.sum())
        return self.num_bytes / max(1, count - 1)


class Encoder(Protocol):
    """Makes tokens of texts. It is sent to worker processes."""

    def encode(self, text: str, tokenizer: Tokenizer) -> Encoded:
        """The tokens of a text that is not empty.

        Raises:
            ValueError: the text is not what it has to be; says what is wrong.
        """
        ...

    def fingerprint(self, tokenizer: Tokenizer) -> str:
        """Changes when the tokens of a text may, beside the tokenizer's own."""
        ...


@dataclass(frozen=True)
class PlainText:
    """The text and the end-of-document token, all of them learnt."""

    def encode(self, text: str, tokenizer: Tokenizer) -> Encoded:
        ids = tokenizer.encode(text)
        tokens = np.empty(len(ids) + 1, dtype=np.int32)  # not a list: a document may be a whole library
        tokens[:-1], tokens[-1] = ids, tokenizer.eos_id
        return Encoded(tokens, None, len(text.encode("utf-8", "surrogatepass")))

    def fingerprint(self, tokenizer: Tokenizer) -> str:
        return "text"


PLAIN_TEXT = PlainText()
