"""Documents that are no texts at hand: tokens, or texts that arrive over time."""

from abc import ABC, abstractmethod

import numpy as np

from titan_pt.data.sources.documents import Order, OrderKey, SkipOptions


class TokenDocuments(ABC):
    """Documents that are tokens already, each with its end-of-document token; empty ones have none."""

    fingerprint: str
    tokenizer: str
    """Fingerprint of the tokenizer that made the tokens."""
    num_tokens: int

    @abstractmethod
    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> str:
        raise TypeError("prepared documents are tokens, not texts")

    @abstractmethod
    def tokens(self, index: int) -> np.ndarray:
        """Tokens of one document, its end included."""

    @abstractmethod
    def require_ids_below(self, vocab_size: int) -> None:
        """Raise a ConfigError if a token is none of a vocabulary of that size."""

    @abstractmethod
    def num_bytes(self, index: int) -> int:
        """UTF-8 bytes of one document's text."""

    @abstractmethod
    def holdout_hash(self, index: int) -> int:
        """Hash of one document's text, equal to `stream.mixture.holdout_hash` of it."""


class StreamedDocuments(ABC):
    """Documents that are fetched row group by row group, so that reading one may take long."""

    by_row_group: bool
    """Whether order and held-out split go by row groups: the source is large. Else documents are permuted singly."""

    @abstractmethod
    def order(self, key: OrderKey, holdout_fraction: float, held_out: bool, skip: SkipOptions) -> Order:
        """The way of one stream through the row groups on one side of the held-out split."""

    @abstractmethod
    def wait_for_ever(self) -> None:
        """Lift the limit on waiting that a start has: from here on the loader's own holds."""

    @abstractmethod
    def interrupt(self) -> None:
        """End all waiting with Stopped; reading can go on at once."""
