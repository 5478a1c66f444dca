"""A tokenizer for dry runs and the planner, which read no text."""

from collections.abc import Sequence

from titan_pt.config.errors import ConfigError
from titan_pt.config.resolve.checks import BUILTIN_TOKENIZER_SIZES
from titan_pt.config.schema.job_config import JobConfig


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


def tokenizer_size(config: JobConfig) -> int:
    """The tokenizer's size where it is known without opening it, else that of the model's vocabulary.

    Raises:
        ConfigError: neither is known.
    """
    size = BUILTIN_TOKENIZER_SIZES.get(config.tokenizer.name, config.model.vocab_size)
    if size is None:
        raise ConfigError(
            f"tokenizer.name = {config.tokenizer.name!r}: its size is not known without opening it, which is not done "
            "here; set model.vocab_size"
        )
    return size
