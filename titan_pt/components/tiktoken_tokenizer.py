"""Tokenizers of the tiktoken library: GPT-2's, and those of .tiktoken rank files."""

import base64
import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import tiktoken
from tiktoken_ext import openai_public

from titan_pt.components.tokenizer import END_OF_TEXT
from titan_pt.components.tokenizer_files import read_file
from titan_pt.config.errors import ConfigError
from titan_pt.run.files import decode_text

logger = logging.getLogger("titan_pt")

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


class TiktokenTokenizer:
    """A byte-pair tokenizer of the tiktoken library: GPT-2's, or that of a rank file."""

    chat_template: str | None = None

    def __init__(self, encoding: tiktoken.Encoding) -> None:
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


def open_tiktoken(rank_file: Path | None) -> TiktokenTokenizer:
    """Open the tokenizer of a .tiktoken file; None: GPT-2's."""
    return TiktokenTokenizer(load_gpt2() if rank_file is None else read_rank_file(rank_file))


def load_gpt2() -> tiktoken.Encoding:
    """Load GPT-2's vocabulary from tiktoken's cache, or download it.

    Raises:
        ConfigError: it cannot be loaded.
    """
    try:
        return tiktoken.get_encoding("gpt2")
    except Exception as error:  # requests' many errors, a bad cached file, a read-only cache
        raise ConfigError(
            f'tokenizer.name = "gpt2": its vocabulary cannot be loaded ({type(error).__name__}); it is downloaded '
            "once, so allow that, set TIKTOKEN_CACHE_DIR to a folder that has it, or give the path of gpt2.tiktoken"
        ) from error


def read_rank_file(path: Path) -> tiktoken.Encoding:
    """Read a .tiktoken file, one `base64-token rank` a line; tiktoken's own loader would keep an outdated copy.

    Raises:
        ConfigError: the file cannot be read, or is no whole vocabulary.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(decode_text(read_file(path), f"tokenizer.name = '{path}'").split("\n"), 1):
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
