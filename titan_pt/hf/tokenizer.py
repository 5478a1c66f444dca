"""A tokenizer.json and the Hugging Face files beside it, as a Tokenizer."""

import functools
import hashlib
import itertools
import json
import logging
import os
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from titan_pt.components.tokenizer import APART, END_OF_TEXT
from titan_pt.components.tokenizer_files import read_file
from titan_pt.config.errors import ConfigError, shown
from titan_pt.hf.added_tokens import CONFIG, add_tokens, read_object
from titan_pt.run.files import decode_text

logger = logging.getLogger("titan_pt")

# Names of end-of-document tokens; the first of these that a vocabulary has is taken.
COMMON_EOS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[EOS]", "[SEP]")

# Characters that no text holds; one that does loses them. The first is a token that stands for those before a text, the
# others surround the id of a token.
_BEFORE, _OPEN, _CLOSE = "\ufdd3", "\ufdd4", "\ufdd5"


class HuggingFaceTokenizer:
    """A tokenizer of Hugging Face's tokenizers library.

    Args:
        eos_id: id of the end-of-document token.
        roles: tokens by their role, such as bos_token, except the end of a document.
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
        self.added_ids = {token.content: i for i, token in added.items()}
        self.eos_id, self.chat_template, self.roles = eos_id, chat_template, dict(roles or {})
        self.prefix_ids = _prefix_ids(tokenizer)
        self.stop_ids = [i for i in stop_ids if 0 <= i < self.vocab_size]
        digest = hashlib.sha256(f"{eos_id}\n{tokenizer.to_str()}".encode())
        self.fingerprint = f"huggingface-{digest.hexdigest()[:16]}"

    def encode(self, text: str) -> list[int]:
        return self.rules.encode(text, add_special_tokens=False).ids

    def encode_behind(self, text: str) -> list[int]:
        """Encode a text that follows other tokens; some tokenizers mark the beginning of a text."""
        return self._plain.encode(_BEFORE + _unreserved(text), add_special_tokens=False).ids[1:]

    def encode_named(self, text: str, *, behind: bool = False) -> list[int]:
        """Encode a text in which names of added tokens stand for these tokens, with what their flags say.

        Args:
            text: a name that APART splits is text.
            behind: it follows other tokens.
        """
        before, text = [_BEFORE] if behind else [], _unreserved(text)
        if APART not in text:
            return self._named.encode("".join([*before, text]), add_special_tokens=False).ids[len(before) :]
        rules, ids = self._renamed
        marked = "".join([*before, self._rename(text).replace(APART, "")])
        found = rules.encode(marked, add_special_tokens=False).ids[len(before) :]
        return [ids.get(i, i) for i in found]

    def decode(self, ids: Sequence[int]) -> str:
        return self.rules.decode([i for i in ids if 0 <= i < self.vocab_size], skip_special_tokens=False)

    @functools.cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        """The rules, with a token that stands for those before a text."""
        return _with_beginning(self.rules, names=False)

    @functools.cached_property
    def _named(self) -> tokenizers.Tokenizer:
        """As `_plain`, and names of special tokens are these tokens."""
        return _with_beginning(self.rules, names=True)

    @functools.cached_property
    def _renamed(self) -> tuple[tokenizers.Tokenizer, dict[int, int]]:
        """Rules in which each added token has another name, that no text holds; and the ids of what they find."""
        rules = json.loads(self.rules.to_str())
        rules["added_tokens"], rules["post_processor"] = [], None
        renamed = tokenizers.Tokenizer.from_str(json.dumps(rules))
        added = self.rules.get_added_tokens_decoder()
        new = [tokenizers.AddedToken(_name(i), normalized=token.normalized) for i, token in added.items()]
        renamed.add_tokens([*new, tokenizers.AddedToken(_BEFORE, normalized=False)])
        return renamed, {found: i for i in added if (found := renamed.token_to_id(_name(i))) is not None}

    @functools.cached_property
    def _finder(self) -> tokenizers.Tokenizer:
        """The added tokens without a vocabulary, so that nothing else is found."""
        finder = tokenizers.Tokenizer(tokenizers.models.WordLevel({_BEFORE: 0}, unk_token=_BEFORE))
        if self.rules.normalizer is not None:
            finder.normalizer = self.rules.normalizer
        finder.add_tokens(list(self.rules.get_added_tokens_decoder().values()))
        return finder

    def _rename(self, text: str) -> str:
        """Write the added tokens of a text by the names of `_renamed`, with the spaces that belong to them."""
        added = self._finder.get_added_tokens_decoder()
        found, parts, at = self._finder.encode(text), [], 0
        for token_id, (start, end) in zip(found.ids, found.offsets, strict=True):
            if token_id in added:
                parts += [text[at:start], _name(self.added_ids[added[token_id].content])]
                at = end
        return "".join([*parts, text[at:]])


def _name(token_id: int) -> str:
    return f"{_OPEN}{token_id}{_CLOSE}"


def _unreserved(text: str) -> str:
    for character in (_BEFORE, _OPEN, _CLOSE):
        text = text.replace(character, "")
    return text


def _with_beginning(rules: tokenizers.Tokenizer, *, names: bool) -> tokenizers.Tokenizer:
    content = json.loads(rules.to_str())
    content["post_processor"] = None  # it may move the offsets of tokens
    result = tokenizers.Tokenizer.from_str(json.dumps(content))
    result.add_tokens([tokenizers.AddedToken(_BEFORE, normalized=False)])
    result.encode_special_tokens = not names
    return result


def _prefix_ids(rules: tokenizers.Tokenizer) -> list[int]:
    """Ids that the tokenizer adds before every text, such as Llama's <|begin_of_text|>."""
    for text in ("a", "1", *itertools.islice(rules.get_vocab(with_added_tokens=False), 100)):
        whole = rules.encode(text)
        if not all(whole.special_tokens_mask):
            return whole.ids[: whole.special_tokens_mask.index(0)]
    return []


def open_tokenizer_json(file: Path, eos_token: str | None) -> HuggingFaceTokenizer:
    """Open a tokenizer.json with the configs and the chat template beside it.

    Args:
        eos_token: name of the end-of-document token; None: the one in tokenizer_config.json, or a common one.

    Raises:
        ConfigError: a file cannot be read, or the tokenizer has no such token.
    """
    try:
        content = read_file(file)
        tokenizer = tokenizers.Tokenizer.from_buffer(content)
        tokenizer.encode("Any text, 1 + 1 = 2; ça va? 世界\0")  # some cannot: words alone, and none for the unknown
    except ConfigError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise ConfigError(f"tokenizer.name = '{file}': not a usable tokenizer.json: {error}") from None
    _check_ids(tokenizer, file, json.loads(content))
    roles = add_tokens(tokenizer, file.parent)
    eos = eos_token or roles.pop("eos_token", None)
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
    template = _chat_template(file.parent / "chat_template.jinja", read_object(file.parent / CONFIG))
    stops = [read_object(file.parent / name).get("eos_token_id") for name in ("generation_config.json", "config.json")]
    roles.pop("eos_token", None)
    return HuggingFaceTokenizer(tokenizer, found[0], template, roles, _ids(stops[0] or stops[1]))


def _check_ids(tokenizer: tokenizers.Tokenizer, file: Path, content: Mapping[str, Any]) -> None:
    """Raise a ConfigError where an added token has another id in the file than the library gives it."""
    for entry in content.get("added_tokens") or []:
        found = tokenizer.token_to_id(entry["content"])
        if found != entry["id"]:
            raise ConfigError(
                f"tokenizer.name = '{file}': added_tokens: {shown(entry['content'])} has id {entry['id']}, and the "
                f"library gives it {found}"
            )


def _ids(value: Any) -> list[int]:
    """Ids in a value of generation_config.json, which is one id or a list."""
    values = value if isinstance(value, list) else [value]
    return [i for i in values if isinstance(i, int) and not isinstance(i, bool)]


def _chat_template(file: Path, config: dict[str, Any]) -> str | None:
    """Read the chat template from its file, or in older folders from tokenizer_config.json, alone or in a list."""
    if os.path.isfile(file):
        return decode_text(read_file(file), f"tokenizer.name = '{file}'")
    template: Any = config.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None
