"""Conversations as tokens, by the tokenizer's Jinja chat template: prompts to continue, examples to train on."""

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from typing import Any

from titan_pt.components.named_tokens import encode_named
from titan_pt.components.tokenizer import APART, Tokenizer
from titan_pt.config.errors import ConfigError, shown
from titan_pt.hf.template import BEGIN, END, render, tags
from titan_pt.hf.tokenizer import HuggingFaceTokenizer
from titan_pt.hf.tokenizer_files import chat_template

Message = Mapping[str, Any]
"""One turn: role ("system", "user", "assistant") and content; an assistant's turn of `weight` 0 is not trained on."""

_MARKS = str.maketrans("", "", BEGIN + END)

PROMPTS, TALKS = "prompts", "conversations"
"""Values of `records` in the data identity of fine-tuning: prompts with completions, or conversations."""

_EXAMPLE_ANSWER = "What it says."
# A template that writes today's date would give a record other tokens tomorrow, and a resume would refuse them.
_DAY_OF_RECORDS = date(2024, 7, 26)

_Render = Callable[..., str]
"""Renders messages by the template: (messages, prompt=whether the next turn is begun) -> text."""


def chat_tokens(
    tokenizer: Tokenizer, messages: Sequence[Message], *, named: bool = False, tools: Sequence[Message] = ()
) -> list[int]:
    """Encode a conversation and the beginning of the assistant's next turn.

    Only the template's own special tokens become one token each: "<|im_end|>" in a message is text, so that no
    message can end its turn or begin another's.

    Args:
        named: names of special tokens in the messages stand for these tokens too, unless `as_text` has split them.
        tools: JSON schemas of functions that the template tells the model of.

    Raises:
        ConfigError: the template cannot be read, or refuses the conversation.
    """
    told = _safe(tokenizer, tools, named=named)
    text = _render(tokenizer, date.today(), _safe(tokenizer, messages, named=named), prompt=True, tools=told)
    return encode_named(tokenizer, text.translate(_MARKS))


def chat_text(
    tokenizer: Tokenizer, messages: Sequence[Message], *, prompt: bool = True, tools: Sequence[Message] = ()
) -> str:
    """Render a conversation as the text that `chat_tokens` encodes.

    Args:
        prompt: append the beginning of the assistant's next turn.
    """
    told = _safe(tokenizer, tools)
    return _render(tokenizer, date.today(), _safe(tokenizer, messages), prompt=prompt, tools=told).translate(_MARKS)


def learnt_tokens(
    tokenizer: Tokenizer, messages: Sequence[Message], *, named: bool = False, tools: Sequence[Message] = ()
) -> tuple[list[int], list[bool]]:
    """Encode a conversation and mark the tokens to train on; returns (ids, one flag for each id).

    Trained tokens are those that the assistant has to write: from the end of its prompt to the token that ends its
    turn, included. The conversation ends with the last of them. Text is split between speakers before it is encoded,
    as it is when the model answers. A template that writes the date gets a fixed one.

    Args:
        named: names of special tokens in the messages stand for these tokens.
        tools: JSON schemas of functions that the template tells the model of.

    Raises:
        ConfigError: the template cannot be read, refuses the conversation, or does not show what the assistant says.
    """
    ids: list[int] = []
    learnt: list[bool] = []
    ends = stop_ids(tokenizer)
    render = functools.partial(_render, tokenizer, _DAY_OF_RECORDS, tools=_safe(tokenizer, tools, named=named))
    text, spans = _spans(tokenizer, render, _safe(tokenizer, messages, named=named), _names(tokenizer, ends))
    wanted = [message.get("weight") != 0 for message in messages if message["role"] == "assistant"]
    at = 0
    for (start, end), is_wanted in zip(spans, wanted, strict=True):
        for part, is_learnt in ((text[at:start], False), (text[start:end], is_wanted)):
            tokens = encode_named(tokenizer, part, behind=bool(ids))
            ids += tokens
            learnt += [is_learnt] * len(tokens)
        at = end
    if ids[-1] not in ends:  # a template without an end of turn
        ids.append(tokenizer.eos_id)
        learnt.append(wanted[-1])
    return ids, learnt


def stop_ids(tokenizer: Tokenizer, *, chat: bool = True) -> list[int]:
    """Ids of tokens that end an answer: end of document, end of turn, and those that generation_config.json adds.

    Args:
        chat: with the end of a turn, for which the chat template is rendered; one that cannot be has none.
    """
    own = tokenizer.stop_ids if isinstance(tokenizer, HuggingFaceTokenizer) else []
    turns = _end_of_turns(tokenizer) if chat else []
    return list(dict.fromkeys([tokenizer.eos_id, *turns, *own]))


def bos_id(tokenizer: Tokenizer) -> int | None:
    """Id of the token that begins a text by the tokenizer's configs, whether or not it is added to every text."""
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        return None
    return tokenizer.rules.token_to_id(tokenizer.roles.get("bos_token", ""))


def knows_chat(trainer: str | None, tokenizer: Tokenizer, data: Mapping[str, Any]) -> bool:
    """Whether a model was trained on conversations, so that prompts go through the chat template.

    Args:
        trainer: kind of its last training; None for a Hugging Face folder.
        data: identity of the data it was trained on.
    """
    if trainer == "sft":
        return data.get("records") != PROMPTS
    if trainer == "grpo":  # without the key: its tasks were asked in plain text
        return bool(data.get("chat"))
    return trainer != "pretrain" and tokenizer.chat_template is not None


def _end_of_turns(tokenizer: Tokenizer) -> list[int]:
    """Id of the token that the template writes after an assistant's content; empty if there is none."""
    try:
        text = _example(chat_template(tokenizer), tuple(_named_tokens(tokenizer).items()))
    except ConfigError:  # reported when the template is used
        return []
    before, _, behind = text.rpartition(_EXAMPLE_ANSWER)
    names = control_ids(tokenizer)
    found = [name for name in names if before and behind.lstrip().startswith(name)]
    return [names[max(found, key=len)]] if found else []


def control_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Ids by name of tokens that no message may name: the special ones, and others that the template writes."""
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        return tokenizer.special_ids
    template = tokenizer.chat_template or ""
    return {name: i for name, i in tokenizer.added_ids.items() if name in tokenizer.special_ids or name in template}


def _names(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    return [name for name, token_id in control_ids(tokenizer).items() if token_id in ids]


def joined_parts(content: Any, where: str) -> Any:
    """Join the content of a message that is a list of text parts; return any other content unchanged.

    Raises:
        ValueError: a part is something else.
    """
    if not isinstance(content, list) or not content:
        return content
    for part in content:
        is_text = isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)
        if not is_text:
            kind = part.get("type") if isinstance(part, Mapping) else part
            raise ValueError(f"{where} has a part {shown(kind)}; want parts of text")
    return "".join(part["text"] for part in content)


def prompt_tokens(tokenizer: Tokenizer, text: str, *, named: bool = False) -> list[int]:
    """Encode a text to continue, after the tokens with which the model's tokenizer begins every text.

    Args:
        named: names of special tokens in the text stand for these tokens. It may then begin with those of every text
            itself, which are not doubled.
    """
    prefix = tokenizer.prefix_ids if isinstance(tokenizer, HuggingFaceTokenizer) else []
    ids = encode_named(tokenizer, text) if named else tokenizer.encode(text)
    return ids if named and prefix and ids[: len(prefix)] == prefix else [*prefix, *ids]


def encode_behind(tokenizer: Tokenizer, text: str, *, named: bool = False) -> list[int]:
    """Encode a text that follows other tokens.

    Args:
        named: names of special tokens in the text stand for these tokens.
    """
    if named:
        return encode_named(tokenizer, text, behind=True)
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return tokenizer.encode_behind(text)
    return tokenizer.encode(text)


def _spans(
    tokenizer: Tokenizer, render: _Render, messages: Sequence[Message], ends: Sequence[str]
) -> tuple[str, list[tuple[int, int]]]:
    """Render a conversation; returns (text, (start, end) of each turn of the assistant with its end token)."""
    marked = render(messages, prompt=False)
    text = marked.translate(_MARKS)
    if "generation" in tags(chat_template(tokenizer)):
        found: list[tuple[int, int]] | None = list(_marked_spans(marked))
    else:
        found = _prefix_spans(render, messages, text, ends) or _content_spans(render, messages, text)
    if not found or len(found) != sum(message["role"] == "assistant" for message in messages):
        raise ConfigError(
            "chat template of the tokenizer: does not show where the assistant speaks; put what it has to write in a "
            "turn, the end of the turn included, between {% generation %} and {% endgeneration %}"
        )
    return text, [(start, _end_of_turn(text, start, end, ends)) for start, end in found]


def _prefix_spans(
    render: _Render, messages: Sequence[Message], text: str, ends: Sequence[str]
) -> list[tuple[int, int]] | None:
    """Find the assistant's turns by rendering each prefix; None if the template rewrites earlier prompts.

    A span runs from the end of its prompt to the end of the turn; to its end token where the template shortens earlier
    turns, as some do that leave out the reasoning.
    """
    spans = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = render(messages[:i], prompt=True)
        whole = text if i + 1 == len(messages) else render(messages[: i + 1], prompt=False)
        is_kept = text.startswith(whole) and len(whole) > len(prompt)
        end = len(whole) if is_kept else _first_end(text, len(prompt), len(text), ends)
        if end is None or not text.startswith(prompt):
            return None
        spans.append((len(prompt), end))
    return spans


def _content_spans(render: _Render, messages: Sequence[Message], text: str) -> list[tuple[int, int]] | None:
    """Find the assistant's content by marks around it; None if they change the text, or miss calls of tools."""
    if any(message.get("tool_calls") for message in messages if message["role"] == "assistant"):
        return None
    tagged = [
        {**message, "content": f"{BEGIN}{message.get('content')}{END}"} if message["role"] == "assistant" else message
        for message in messages
    ]
    marked = render(tagged, prompt=False)
    spans = list(_marked_spans(marked))
    contents = [message.get("content") for message in messages if message["role"] == "assistant"]
    is_same = marked.translate(_MARKS) == text and [text[start:end] for start, end in spans] == contents
    return spans if is_same else None


def _marked_spans(marked: str) -> Iterator[tuple[int, int]]:
    """Yield the (start, end) between marks, as offsets in the text without marks."""
    at, start = 0, 0
    for part in re.split(f"([{BEGIN}{END}])", marked):
        if part == BEGIN:
            start = at
        elif part == END:
            yield start, at
        else:
            at += len(part)


def _end_of_turn(text: str, start: int, end: int, ends: Sequence[str]) -> int:
    """Offset after the token that ends a turn: the first in the span or right behind it; else the span's end."""
    inside = _first_end(text, start, end, ends)
    if inside is not None:
        return inside
    return next((end + len(name) for name in ends if text.startswith(name, end)), end)


def _first_end(text: str, start: int, end: int, ends: Sequence[str]) -> int | None:
    """Offset after the first of these tokens between start and end; None if there is none."""
    found = [(at, at + len(name)) for name in ends if (at := text.find(name, start, end)) >= 0]
    return min(found)[1] if found else None


@functools.lru_cache(maxsize=16)
def _example(template: str, names: tuple[tuple[str, str], ...]) -> str:
    """A short conversation by a template, rendered once and not for each record."""
    talk = [{"role": "user", "content": "What is said."}, {"role": "assistant", "content": _EXAMPLE_ANSWER}]
    return _rendered(template, dict(names), _DAY_OF_RECORDS, talk, prompt=False).translate(_MARKS)


def _render(
    tokenizer: Tokenizer, day: date, messages: Sequence[Message], *, prompt: bool, tools: Sequence[Message] = ()
) -> str:
    template, names = chat_template(tokenizer), _named_tokens(tokenizer)
    return _rendered(template, names, day, messages, prompt=prompt, tools=tools)


def _rendered(
    template: str,
    names: Mapping[str, str],
    day: date,
    messages: Sequence[Message],
    *,
    prompt: bool,
    tools: Sequence[Message] = (),
) -> str:
    return render(
        template,
        tools=tools,
        messages=messages,
        documents=None,
        add_generation_prompt=prompt,
        strftime_now=lambda form: day.strftime(form),
        **names,
    )


def _safe(tokenizer: Tokenizer, messages: Sequence[Message], *, named: bool = False) -> list[Message]:
    """Copy messages without the marks of this module, and unless they are `named` with names of tokens split."""

    def safe(text: str) -> str:
        bare = text.translate(_MARKS)
        return bare if named else as_text(tokenizer, bare)

    return [_with_texts(message, safe) for message in messages]


def _with_texts(value: Any, change: Callable[[str], str]) -> Any:
    """Copy a value with every text in it changed: a template may write any field of a message."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _with_texts(inner, change) for key, inner in value.items()}
    return [_with_texts(inner, change) for inner in value] if isinstance(value, list) else value


def as_text(tokenizer: Tokenizer, content: str) -> str:
    """Split the names of special tokens in a text, so that they stay text where it is encoded as `named`."""
    for name in control_ids(tokenizer):
        content = content.replace(name, name[0] + APART + name[1:])
    return content


def _named_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    """Special tokens by the variables that templates write them with, such as eos_token."""
    names = {token_id: name for name, token_id in tokenizer.special_ids.items()}
    roles = tokenizer.roles if isinstance(tokenizer, HuggingFaceTokenizer) else {}
    return {"bos_token": "", **roles, "eos_token": names.get(tokenizer.eos_id, "")}
