"""A tokenizer for dry runs and the planner, which read no text."""

from collections.abc import Sequence


class SizedTokenizer:
    """A tokenizer that has only a vocabulary size; it can neither encode nor decode."""

    special_ids: dict[str, int] = {}  # noqa: RUF012
    chat_template: str | None = None

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size, self.eos_id = vocab_size, vocab_size - 1
        self.fingerprint = f"size-{vocab_size}"

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError("there is no text in a dry run")

    def decode(self, ids: Sequence[int]) -> str:
        raise NotImplementedError("there is no text in a dry run")
