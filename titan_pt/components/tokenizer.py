"""The protocol of tokenizers, the tokenizer of bytes, and the choice by `[tokenizer]`; others are loaded by name."""

import functools
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from titan_pt.config.errors import ConfigError
from titan_pt.config.resolve.checks import BUILTIN_TOKENIZER_SIZES
from titan_pt.config.schema.job_config import TokenizerSection
from titan_pt.protocols.registry import import_attribute

logger = logging.getLogger("titan_pt")

END_OF_TEXT = "<|endoftext|>"
APART = "\ufdd0"
"""A character that no text holds. It splits what has the form of a special token and is text."""


class Tokenizer(Protocol):
    """Converts text to token ids and back."""

    vocab_size: int
    """Upper bound of the ids; the model's vocabulary may be larger."""
    eos_id: int
    """Id of the token that ends every document."""
    special_ids: dict[str, int]
    """Ids by name of tokens that plain text is never encoded to."""
    fingerprint: str
    """Equal for tokenizers that give equal ids; saved with every checkpoint."""
    chat_template: str | None
    """Jinja template of a conversation, in transformers' form; None where the tokenizer came without one."""

    def encode(self, text: str) -> list[int]:
        """Encode plain text; names of special tokens in it are text like any other."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids; bytes that are not UTF-8 become U+FFFD, ids beyond the vocabulary nothing."""
        ...


class ByteTokenizer:
    """A tokenizer whose ids are UTF-8 bytes, with special tokens above them."""

    special_ids = {END_OF_TEXT: 256, "<|im_start|>": 257, "<|im_end|>": 258}  # noqa: RUF012
    vocab_size = BUILTIN_TOKENIZER_SIZES["byte"]
    eos_id = 256
    fingerprint = "byte-259"
    chat_template: str | None = None

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8", errors="surrogatepass"))

    def decode(self, ids: Sequence[int]) -> str:
        names = {i: name.encode() for name, i in self.special_ids.items()}
        known = [i for i in ids if 0 <= i < self.vocab_size]
        return b"".join(names.get(i) or bytes([i]) for i in known).decode("utf-8", "replace")


def name_in(tokenizer: Tokenizer, text: str) -> str | None:
    """The first name of a special token in a text, or None."""
    names = tuple(tokenizer.special_ids)
    if not any(start in text for start in _beginnings(names)):
        return None
    found = named_parts(names).search(text)
    return found[0] if found else None


@functools.cache
def named_parts(names: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(f"({'|'.join(re.escape(name) for name in sorted(names, key=len, reverse=True))})")


@functools.cache
def _beginnings(names: tuple[str, ...]) -> frozenset[str]:
    """What the names begin with: few strings, found faster than the names."""
    return frozenset(name[:2] for name in names)


def build_tokenizer(section: TokenizerSection) -> Tokenizer:
    """Build the tokenizer that `[tokenizer]` names.

    Raises:
        ConfigError: the name is neither built in nor a readable file of a known kind.
    """
    # os.path where pathlib raises: a name too long for a file.
    name, path = section.name, Path(section.name)
    file = path / "tokenizer.json" if os.path.isdir(path) else path
    if os.path.isfile(file) and file.suffix == ".json":
        tokenizer: Tokenizer = import_attribute("titan_pt.hf.tokenizer:open_tokenizer_json")(file, section.eos_token)
        return tokenizer
    if section.eos_token is not None:
        logger.warning(f"tokenizer.eos_token = {section.eos_token!r} has no effect: it is for a tokenizer.json")
    if name == "byte":
        return ByteTokenizer()
    is_rank_file = os.path.isfile(path) and path.suffix == ".tiktoken"
    if name == "gpt2" or is_rank_file:
        open_tiktoken = import_attribute("titan_pt.components.tiktoken_tokenizer:open_tiktoken")
        opened: Tokenizer = open_tiktoken(None if name == "gpt2" else path)
        return opened
    from titan_pt.config.resolve.unreadable import unknown_tokenizer

    raise ConfigError(unknown_tokenizer(name, str(path), BUILTIN_TOKENIZER_SIZES))
