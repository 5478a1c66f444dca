"""Tokenizers behind one small protocol: bytes, GPT-2's, and .tiktoken rank files; `hf.tokenizer` has the others."""

import base64
import hashlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from titan_pt.config.errors import ConfigError, nearest, shown
from titan_pt.config.resolve.checks import BUILTIN_TOKENIZER_SIZES
from titan_pt.config.schema.job_config import Tokenizer as TokenizerSection

if TYPE_CHECKING:
    import tiktoken

logger = logging.getLogger("titan_pt")

END_OF_TEXT = "<|endoftext|>"
# How text is split before merging, which a rank file does not say; copied from tiktoken, whose own functions that hold
# them download a vocabulary first.
_CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|"
    r"\s+(?!\S)|\s"
)
_O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Published vocabularies are known by their number of ranks: OpenAI's, and Llama 3's, which splits as cl100k does.
_SPLITS = {100256: _CL100K, 128000: _CL100K, 199998: _O200K}
_GPT2_SIZES = (50256, 50257)


class Tokenizer(Protocol):
    """Text to token ids and back."""

    vocab_size: int
    """Ids are below this; the model's vocabulary may be larger."""
    eos_id: int
    """Ends every document."""
    special_ids: dict[str, int]
    """Ids by name of tokens that plain text is never encoded to."""
    fingerprint: str
    """Equal for tokenizers that give equal ids; saved with every checkpoint."""
    chat_template: str | None
    """Jinja that writes a conversation, as transformers takes it; None where the tokenizer came without one."""

    def encode(self, text: str) -> list[int]:
        """The ids of plain text; special tokens in it are text like any other."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text; bytes that are not UTF-8 become U+FFFD, ids beyond the vocabulary nothing."""
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


class TiktokenTokenizer:
    """A byte-pair tokenizer of the tiktoken library: GPT-2's, or that of a rank file."""

    chat_template: str | None = None

    def __init__(self, encoding: "tiktoken.Encoding") -> None:
        self._encoding = encoding
        self.pattern, self.ranks = encoding._pat_str, encoding._mergeable_ranks
        self.vocab_size = encoding.n_vocab
        self.special_ids = dict(encoding._special_tokens)
        self.eos_id = self.special_ids[END_OF_TEXT]
        digest = hashlib.sha256(self.pattern.encode())
        for token, rank in sorted(self.ranks.items(), key=lambda item: item[1]):
            digest.update(rank.to_bytes(4, "little") + len(token).to_bytes(4, "little") + token)
        digest.update(json.dumps(self.special_ids, sort_keys=True).encode())
        self.fingerprint = f"tiktoken-{digest.hexdigest()[:16]}"

    def encode(self, text: str) -> list[int]:
        return self._encoding.encode_ordinary(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self._encoding.decode([i for i in ids if 0 <= i < self.vocab_size])


def build_tokenizer(section: TokenizerSection) -> Tokenizer:
    """Build the tokenizer that `[tokenizer]` names.

    Raises:
        ConfigError: the name is neither built in nor a readable file of a known kind.
    """
    # os.path where pathlib raises: an unknown ~user, a name too long for a file.
    name, path = section.name, Path(os.path.expanduser(section.name))
    file = path / "tokenizer.json" if os.path.isdir(path) else path
    if os.path.isfile(file) and file.suffix == ".json":
        from titan_pt.hf.tokenizer import open_tokenizer_json

        return open_tokenizer_json(file, section.eos_token)
    if section.eos_token is not None:
        logger.warning(f"tokenizer.eos_token = {section.eos_token!r} has no effect: it is for a tokenizer.json")
    if name == "byte":
        return ByteTokenizer()
    if name == "gpt2":
        return TiktokenTokenizer(_gpt2())
    if os.path.isfile(path) and path.suffix == ".tiktoken":
        return TiktokenTokenizer(_rank_file(path))
    folder, exists = os.path.isdir(path), os.path.exists(path)
    reason = "a folder without tokenizer.json" if folder else "an unknown kind of file" if exists else "no such file"
    hint = nearest(name, BUILTIN_TOKENIZER_SIZES)
    raise ConfigError(
        f'tokenizer.name = {shown(name)}: {reason}{hint}; allowed are "byte", "gpt2", or '
        "the path of a .tiktoken file, a tokenizer.json, or a folder that holds one"
    )


def _gpt2() -> "tiktoken.Encoding":
    import tiktoken

    try:
        return tiktoken.get_encoding("gpt2")
    except Exception as error:  # requests' many errors, a bad cached file, a read-only cache
        raise ConfigError(
            f'tokenizer.name = "gpt2": its vocabulary cannot be loaded ({type(error).__name__}); it is downloaded '
            "once, so allow that, set TIKTOKEN_CACHE_DIR to a folder that has it, or give the path of gpt2.tiktoken"
        ) from error


def _rank_file(path: Path) -> "tiktoken.Encoding":
    """Read a .tiktoken file, one `base64-token rank` a line; tiktoken's own loader would keep an outdated copy."""
    import tiktoken
    from tiktoken_ext import openai_public

    ranks: dict[bytes, int] = {}
    for number, line in enumerate(read_file(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError:
            raise ConfigError(f"tokenizer.name = '{path}': line {number} is not `base64-token rank`") from None
    if sorted(ranks.values()) != list(range(len(ranks))) or not all(bytes([b]) in ranks for b in range(256)):
        raise ConfigError(f"tokenizer.name = '{path}': the ranks must be 0, 1, 2, ... and hold all 256 single bytes")
    if len(ranks) not in _SPLITS and len(ranks) not in _GPT2_SIZES:
        logger.warning(
            f"tokenizer.name = '{path}': a vocabulary of {len(ranks)} ranks is not known, so text is split as GPT-2 "
            "does; if it was made with another split, give its tokenizer.json"
        )
    return tiktoken.Encoding(
        path.stem,
        pat_str=_SPLITS.get(len(ranks), openai_public.r50k_pat_str),
        mergeable_ranks=ranks,
        special_tokens={END_OF_TEXT: len(ranks)},
    )


def read_file(file: Path) -> bytes:
    """The content of a tokenizer's file.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"tokenizer.name = '{file}': cannot be read: {error.strerror or error}") from None
