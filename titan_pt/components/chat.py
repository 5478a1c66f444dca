"""A conversation as the tokens that a model continues, by the tokenizer's Jinja template."""

import functools
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from titan_pt.components.hf_tokenizer import chat_template
from titan_pt.components.tokenizer import HuggingFaceTokenizer, Tokenizer
from titan_pt.config.errors import ConfigError

Message = Mapping[str, str]
"""role ("system", "user", "assistant") and content."""

# A character that no text holds: it parts what a speaker wrote in the form of a special token.
_APART = "\ufdd0"


def chat_tokens(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """The conversation and the beginning of the assistant's next turn.

    Only the template's own special tokens become one token each: "<|im_end|>" in a message is text, so that no
    message can end its turn or begin another's.

    Raises:
        ConfigError: the template cannot be read, or refuses the conversation.
    """
    safe = [{**message, "content": _apart(message["content"], tokenizer)} for message in messages]
    try:
        text = (
            _environment()
            .from_string(chat_template(tokenizer))
            .render(messages=safe, add_generation_prompt=True, **_named_tokens(tokenizer))
        )
    except TemplateError as error:
        raise ConfigError(f"chat template of the tokenizer: {error}") from None
    return encode_with_special_tokens(tokenizer, text)


def encode_with_special_tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a rendered template, in which the names of special tokens stand for these tokens."""
    names = tokenizer.special_ids
    pattern = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    ids: list[int] = []
    for part in re.split(f"({pattern})", text) if names else [text]:
        if part in names:
            ids.append(names[part])
        elif part:
            ids += tokenizer.encode(part.replace(_APART, ""))
    return ids


def _apart(content: str, tokenizer: Tokenizer) -> str:
    for name in tokenizer.special_ids:
        content = content.replace(name, name[0] + _APART + name[1:])
    return content


def _named_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    """eos_token and its like: templates add them by name."""
    names = {token_id: name for name, token_id in tokenizer.special_ids.items()}
    roles = tokenizer.roles if isinstance(tokenizer, HuggingFaceTokenizer) else {}
    return {"bos_token": "", **roles, "eos_token": names.get(tokenizer.eos_id, "")}


@functools.cache
def _environment() -> ImmutableSandboxedEnvironment:
    """As transformers renders templates: they come with a model, so they are not trusted with anything."""

    def refuse(message: str) -> Any:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals |= {"raise_exception": refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
    return environment
