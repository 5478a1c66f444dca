"""A tokenizer.json and the Hugging Face files beside it, as a Tokenizer."""

import hashlib
import json
import logging
import os
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from titan_pt.components.tokenizer import END_OF_TEXT, read_file
from titan_pt.config.errors import ConfigError
from titan_pt.run.files import decode_text

logger = logging.getLogger("titan_pt")

# Names of end-of-document tokens; the first of these that a vocabulary has is taken.
COMMON_EOS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[EOS]", "[SEP]")


class HuggingFaceTokenizer:
    """A tokenizer of Hugging Face's tokenizers library.

    Args:
        eos_id: id of the end-of-document token.
        roles: tokens by their role in tokenizer_config.json, such as bos_token, except the end of a document.
        stop_ids: tokens that end generation, by the generation_config.json or config.json beside it.
    """

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
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
        """Encode a text that follows other tokens; some tokenizers mark the beginning of a text."""
        if self._behind is None or any(name in text for name in self.special_ids):
            return self.encode(text)
        return self._behind.encode(next(iter(self.special_ids)) + text, add_special_tokens=False).ids[1:]

    def decode(self, ids: Sequence[int]) -> str:
        return self.rules.decode([i for i in ids if 0 <= i < self.vocab_size], skip_special_tokens=False)


def _prefix_ids(rules: tokenizers.Tokenizer) -> list[int]:
    """Ids that the tokenizer adds before every text, such as Llama's <|begin_of_text|>."""
    bare, whole = (rules.encode("a", add_special_tokens=adds).ids for adds in (False, True))
    starts = (i for i in range(len(whole)) if bare and whole[i : i + len(bare)] == bare)
    return whole[: next(starts, 0)]


def _behind_a_token(rules: tokenizers.Tokenizer, names: Mapping[str, int]) -> tokenizers.Tokenizer | None:
    """A copy that recognizes special tokens in text; None if a text has the same ids after one as alone."""
    name = next(iter(names), None)
    rules.encode_special_tokens = False
    behind = rules.encode(f"{name}a", add_special_tokens=False).ids if name else []
    rules.encode_special_tokens = True
    alone = rules.encode("a", add_special_tokens=False).ids
    if behind[:1] != [names.get(name or "")] or behind[1:] == alone:
        return None
    return tokenizers.Tokenizer.from_str(rules.to_str())


def open_tokenizer_json(file: Path, eos_token: str | None) -> HuggingFaceTokenizer:
    """Open a tokenizer.json with the configs and the chat template beside it.

    Args:
        eos_token: name of the end-of-document token; None: the one in tokenizer_config.json, or a common one.

    Raises:
        ConfigError: a file cannot be read, or the tokenizer has no such token.
    """
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(read_file(file))
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
    """Ids in a value of generation_config.json, which is one id or a list."""
    values = value if isinstance(value, list) else [value]
    return [i for i in values if isinstance(i, int) and not isinstance(i, bool)]


def _object(file: Path) -> dict[str, Any]:
    if not os.path.isfile(file):
        return {}
    try:
        config = json.loads(decode_text(read_file(file), f"tokenizer.name = '{file}'"))
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"tokenizer.name = '{file.parent}': {file.name} cannot be read: {error}") from None
    return config if isinstance(config, dict) else {}


def _role(config: dict[str, Any], name: str) -> str | None:
    token: Any = config.get(name)
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def _chat_template(file: Path, config: dict[str, Any]) -> str | None:
    """Read the chat template from its file, or in older folders from tokenizer_config.json, alone or in a list."""
    if os.path.isfile(file):
        return decode_text(read_file(file), f"tokenizer.name = '{file}'")
    template: Any = config.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None
