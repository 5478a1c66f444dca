"""Tokenizers behind one small protocol: bytes, GPT-2's, a .tiktoken rank file, a Hugging Face tokenizer.json."""

import base64
import hashlib
import json
import logging
import os
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from titan_pt.config.errors import ConfigError, nearest, shown
from titan_pt.config.resolve.checks import BUILTIN_TOKENIZER_SIZES
from titan_pt.config.schema.job_config import Tokenizer as TokenizerSection

if TYPE_CHECKING:
    import tiktoken
    import tokenizers

logger = logging.getLogger("titan_pt")

END_OF_TEXT = "<|endoftext|>"
# Tokenizers name their end-of-document token in many ways; the first of these that a vocabulary has is taken.
COMMON_EOS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[EOS]", "[SEP]")

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
    """Tokens that text never becomes, by name."""
    fingerprint: str
    """Equal for tokenizers that give equal ids; a checkpoint remembers it."""
    chat_template: str | None
    """Jinja that writes a conversation, as transformers takes it; None where the tokenizer came without one."""

    def encode(self, text: str) -> list[int]:
        """The ids of plain text; special tokens in it are text like any other."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text; bytes that are not UTF-8 become U+FFFD, ids beyond the vocabulary nothing."""
        ...


class ByteTokenizer:
    """UTF-8 bytes, and special tokens above them."""

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


class SizedTokenizer:
    """A size alone, where there is no text: in a dry run and the planner."""

    special_ids: dict[str, int] = {}  # noqa: RUF012
    chat_template: str | None = None

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size, self.eos_id = vocab_size, vocab_size - 1
        self.fingerprint = f"size-{vocab_size}"

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError("there is no text in a dry run")

    def decode(self, ids: Sequence[int]) -> str:
        raise NotImplementedError("there is no text in a dry run")


class TiktokenTokenizer:
    """A tiktoken encoding."""

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


class HuggingFaceTokenizer:
    """A tokenizer.json.

    Args:
        roles: what its tokenizer_config.json calls other tokens than the end of a document, such as bos_token.
        stop_ids: tokens at which its model stops, as the generation_config.json or config.json beside it say.
    """

    def __init__(
        self,
        tokenizer: "tokenizers.Tokenizer",
        eos_id: int,
        chat_template: str | None = None,
        roles: Mapping[str, str] | None = None,
        stop_ids: Sequence[int] = (),
    ) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = True  # "<|im_end|>" in a document is text, not the end of a turn
        self.rules = tokenizer
        self.vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        added = tokenizer.get_added_tokens_decoder()
        self.special_ids = {token.content: i for i, token in added.items() if token.special}
        self.eos_id, self.chat_template, self.roles = eos_id, chat_template, dict(roles or {})
        self.prefix_ids = _prefix_ids(tokenizer)
        self._behind = _behind_a_token(tokenizer, self.special_ids)
        self.stop_ids = [i for i in stop_ids if 0 <= i < self.vocab_size]
        digest = hashlib.sha256(f"{eos_id}\n{tokenizer.to_str()}".encode())
        self.fingerprint = f"huggingface-{digest.hexdigest()[:16]}"

    def encode(self, text: str) -> list[int]:
        return self.rules.encode(text, add_special_tokens=False).ids

    def encode_behind(self, text: str) -> list[int]:
        """The ids of a text that other tokens come before: some tokenizers mark the beginning of a text alone."""
        if self._behind is None or any(name in text for name in self.special_ids):
            return self.encode(text)
        return self._behind.encode(next(iter(self.special_ids)) + text, add_special_tokens=False).ids[1:]

    def decode(self, ids: Sequence[int]) -> str:
        return self.rules.decode([i for i in ids if 0 <= i < self.vocab_size], skip_special_tokens=False)


def _prefix_ids(rules: "tokenizers.Tokenizer") -> list[int]:
    """What it puts before every text that its model reads, such as Llama's <|begin_of_text|>."""
    bare, whole = (rules.encode("a", add_special_tokens=adds).ids for adds in (False, True))
    starts = (i for i in range(len(whole)) if bare and whole[i : i + len(bare)] == bare)
    return whole[: next(starts, 0)]


def _behind_a_token(rules: "tokenizers.Tokenizer", names: Mapping[str, int]) -> "tokenizers.Tokenizer | None":
    """The same that knows its special tokens in a text; None where a text behind one has the ids that it has alone."""
    import tokenizers

    name = next(iter(names), None)
    rules.encode_special_tokens = False
    behind = rules.encode(f"{name}a", add_special_tokens=False).ids if name else []
    rules.encode_special_tokens = True
    alone = rules.encode("a", add_special_tokens=False).ids
    if behind[:1] != [names.get(name or "")] or behind[1:] == alone:
        return None
    return tokenizers.Tokenizer.from_str(rules.to_str())


def build_tokenizer(section: TokenizerSection) -> Tokenizer:
    """The tokenizer of `[tokenizer]`.

    Raises:
        ConfigError: the name is neither built in nor a readable file of a known kind.
    """
    # os.path where pathlib raises: an unknown ~user, a name too long for a file.
    name, path = section.name, Path(os.path.expanduser(section.name))
    file = path / "tokenizer.json" if os.path.isdir(path) else path
    if os.path.isfile(file) and file.suffix == ".json":
        return _tokenizer_json(file, section.eos_token)
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
    """One `base64-token rank` a line. tiktoken's own loader would keep a cached copy even after the file changed."""
    import tiktoken
    from tiktoken_ext import openai_public

    ranks: dict[bytes, int] = {}
    for number, line in enumerate(_contents(path).splitlines(), 1):
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


def _contents(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"tokenizer.name = '{file}': cannot be read: {error.strerror or error}") from None


def _tokenizer_json(file: Path, eos_token: str | None) -> HuggingFaceTokenizer:
    import tokenizers

    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(_contents(file))
        tokenizer.encode("Any text, 1 + 1 = 2; ça va? 世界\0")  # some cannot: words alone, and none for the unknown
    except ConfigError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise ConfigError(f"tokenizer.name = '{file}': not a usable tokenizer.json: {error}") from None
    config = _object(file.parent / "tokenizer_config.json")
    eos = eos_token or _role(config, "eos_token")
    candidates = (eos,) if eos else COMMON_EOS
    found = [i for token in candidates if (i := tokenizer.token_to_id(token)) is not None]
    if not found:
        raise ConfigError(
            f"tokenizer.name = '{file}': it has no end-of-document token {' or '.join(candidates)}; "
            "name one of its tokens in tokenizer.eos_token"
        )
    dropped = "".join(character for character in string.printable.strip() if not tokenizer.encode(character).ids)
    if dropped:
        logger.warning(f"tokenizer.name = '{file}': leaves {dropped} out of every text: it has no tokens for them")
    template = _chat_template(file.parent / "chat_template.jinja", config)
    roles = {name: token for name in ("bos_token", "unk_token", "pad_token") if (token := _role(config, name))}
    stops = [_object(file.parent / name).get("eos_token_id") for name in ("generation_config.json", "config.json")]
    return HuggingFaceTokenizer(tokenizer, found[0], template, roles, _ids(stops[0] or stops[1]))


def _ids(value: Any) -> list[int]:
    """One id or several, as a generation_config.json gives them."""
    values = value if isinstance(value, list) else [value]
    return [i for i in values if isinstance(i, int) and not isinstance(i, bool)]


def _object(file: Path) -> dict[str, Any]:
    if not os.path.isfile(file):
        return {}
    try:
        config = json.loads(_contents(file))
    except ValueError as error:
        raise ConfigError(f"tokenizer.name = '{file.parent}': {file.name} cannot be read: {error}") from None
    return config if isinstance(config, dict) else {}


def _role(config: dict[str, Any], name: str) -> str | None:
    token: Any = config.get(name)
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def _chat_template(file: Path, config: dict[str, Any]) -> str | None:
    """A file of its own, or in older folders a value of tokenizer_config.json: a text, or several with names."""
    if os.path.isfile(file):
        return _contents(file).decode("utf-8", "replace")
    template: Any = config.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None
