"""A conversation as tokens, by the tokenizer's Jinja template: those that a model continues, or learns from."""

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from titan_pt.components.tokenizer import Tokenizer
from titan_pt.config.errors import ConfigError, shown
from titan_pt.hf.tokenizer import HuggingFaceTokenizer
from titan_pt.hf.tokenizer_files import chat_template

Message = Mapping[str, Any]
"""role ("system", "user", "assistant") and content; what the assistant says with a `weight` of 0 is not learnt."""

# Characters that no text holds. The first parts what a speaker wrote in the form of a special token; the others stand
# around what the assistant says.
_APART, _BEGIN, _END = "\ufdd0", "\ufdd1", "\ufdd2"
_MARKS = str.maketrans("", "", _BEGIN + _END)

PROMPTS, TALKS = "prompts", "conversations"
"""What the identity of the data of fine-tuning calls its `records`."""

_SAID = "What it says."
# Templates that tell the date would make other tokens of a record tomorrow, and a resume would find them changed.
_DAY_OF_RECORDS = date(2024, 7, 26)

_Render = Callable[..., str]
"""(messages, prompt=...) -> the text that the template makes of them."""


def chat_tokens(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """The conversation and the beginning of the assistant's next turn.

    Only the template's own special tokens become one token each: "<|im_end|>" in a message is text, so that no
    message can end its turn or begin another's.

    Raises:
        ConfigError: the template cannot be read, or refuses the conversation.
    """
    return encode_with_special_tokens(tokenizer, chat_text(tokenizer, messages))


def chat_text(tokenizer: Tokenizer, messages: Sequence[Message], *, prompt: bool = True) -> str:
    """What `encode_with_special_tokens` makes these tokens of.

    Args:
        prompt: with the beginning of the assistant's next turn.
    """
    return _render(tokenizer, date.today(), _safe(tokenizer, messages), prompt=prompt).translate(_MARKS)


def learnt_tokens(tokenizer: Tokenizer, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
    """(the conversation, whether each of its tokens is to be learnt).

    Those are what the assistant has to write: from where its prompt ends to the token that ends its turn, that one
    included. The conversation ends with the last of them. Text is cut where one speaker takes over from another
    before it becomes tokens, as it is when the model answers. A template that tells the date tells a fixed one.

    Raises:
        ConfigError: as `chat_tokens`; or the template does not show what the assistant says.
    """
    ids: list[int] = []
    learnt: list[bool] = []
    ends = stop_ids(tokenizer)
    text, spans = _spans(tokenizer, _safe(tokenizer, messages), _names(tokenizer, ends))
    wanted = [message.get("weight") != 0 for message in messages if message["role"] == "assistant"]
    at = 0
    for (start, end), is_wanted in zip(spans, wanted, strict=True):
        for part, is_learnt in ((text[at:start], False), (text[start:end], is_wanted)):
            tokens = encode_with_special_tokens(tokenizer, part, begins=not ids)
            ids += tokens
            learnt += [is_learnt] * len(tokens)
        at = end
    if ids[-1] not in ends:  # a template without an end of turn
        ids.append(tokenizer.eos_id)
        learnt.append(wanted[-1])
    return ids, learnt


def stop_ids(tokenizer: Tokenizer) -> list[int]:
    """Tokens that end an answer: the end of a document, that of a turn, and what generation_config.json adds."""
    own = tokenizer.stop_ids if isinstance(tokenizer, HuggingFaceTokenizer) else []
    return list(dict.fromkeys([tokenizer.eos_id, *_end_of_turns(tokenizer), *own]))


def knows_chat(trainer: str | None, tokenizer: Tokenizer, data: Mapping[str, Any]) -> bool:
    """Whether a model was trained on conversations, so that a prompt is to be asked through the template.

    Args:
        trainer: kind of its last training; None of a Hugging Face folder.
        data: the identity of what it was trained on.
    """
    if trainer == "sft":
        return data.get("records") != PROMPTS
    return trainer != "pretrain" and tokenizer.chat_template is not None


def _end_of_turns(tokenizer: Tokenizer) -> list[int]:
    """The token that the template puts behind what the assistant says, if it does."""
    talk = [{"role": "user", "content": "What is said."}, {"role": "assistant", "content": _SAID}]
    try:
        text = _render(tokenizer, _DAY_OF_RECORDS, talk, prompt=False).translate(_MARKS)
    except ConfigError:  # told when the template is used
        return []
    before, _, behind = text.rpartition(_SAID)
    found = [name for name in tokenizer.special_ids if before and behind.lstrip().startswith(name)]
    return [tokenizer.special_ids[max(found, key=len)]] if found else []


def _names(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    return [name for name, token_id in tokenizer.special_ids.items() if token_id in ids]


def joined_parts(content: Any, where: str) -> Any:
    """A content that is a list of parts of text as one text; any other as it is.

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


def prompt_tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    """A text that is to be continued, behind what the tokenizer of its model begins every text with."""
    prefix = tokenizer.prefix_ids if isinstance(tokenizer, HuggingFaceTokenizer) else []
    return [*prefix, *tokenizer.encode(text)]


def encode_behind(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text that other tokens come before."""
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return tokenizer.encode_behind(text)
    return tokenizer.encode(text)


def encode_with_special_tokens(tokenizer: Tokenizer, text: str, *, begins: bool = True) -> list[int]:
    """The ids of a rendered template, in which the names of special tokens stand for these tokens.

    Args:
        begins: nothing comes before it.
    """
    names = tokenizer.special_ids
    pattern = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    ids: list[int] = []
    for part in re.split(f"({pattern})", text) if names else [text]:
        if part in names:
            ids.append(names[part])
        elif part:
            bare = part.replace(_APART, "")
            ids += tokenizer.encode(bare) if begins and not ids else encode_behind(tokenizer, bare)
    return ids


def _spans(tokenizer: Tokenizer, messages: Sequence[Message], ends: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """(the rendered conversation, where in it the assistant speaks, the ends of its turns included)."""
    render = functools.partial(_render, tokenizer, _DAY_OF_RECORDS)
    marked = render(messages, prompt=False)
    text = marked.translate(_MARKS)
    if "generation" in _tags(chat_template(tokenizer)):
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
    """From the end of each prompt to the end of the turn; None where a template writes prompts anew later on.

    Of a turn that is written anew later on, as those that leave out what was thought, the end is its end token.
    """
    spans = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt, whole = render(messages[:i], prompt=True), render(messages[: i + 1], prompt=False)
        is_kept = text.startswith(whole) and len(whole) > len(prompt)
        end = len(whole) if is_kept else _first_end(text, len(prompt), len(text), ends)
        if end is None or not text.startswith(prompt):
            return None
        spans.append((len(prompt), end))
    return spans


def _content_spans(render: _Render, messages: Sequence[Message], text: str) -> list[tuple[int, int]] | None:
    """What the assistant says, found by marks around it; None where they change what the template makes of it."""
    tagged = [
        {**message, "content": f"{_BEGIN}{message['content']}{_END}"} if message["role"] == "assistant" else message
        for message in messages
    ]
    marked = render(tagged, prompt=False)
    spans = list(_marked_spans(marked))
    said = [message["content"] for message in messages if message["role"] == "assistant"]
    is_same = marked.translate(_MARKS) == text and [text[start:end] for start, end in spans] == said
    return spans if is_same else None


def _marked_spans(marked: str) -> Iterator[tuple[int, int]]:
    """Places between the marks, in the text without them."""
    at, start = 0, 0
    for part in re.split(f"([{_BEGIN}{_END}])", marked):
        if part == _BEGIN:
            start = at
        elif part == _END:
            yield start, at
        else:
            at += len(part)


def _end_of_turn(text: str, start: int, end: int, ends: Sequence[str]) -> int:
    """Behind the token that ends the turn: the first in the span, or one that follows it at once; else its end."""
    inside = _first_end(text, start, end, ends)
    if inside is not None:
        return inside
    return next((end + len(name) for name in ends if text.startswith(name, end)), end)


def _first_end(text: str, start: int, end: int, ends: Sequence[str]) -> int | None:
    """Behind the first of these tokens. What was said in their form is parted, so it is none."""
    found = [(at, at + len(name)) for name in ends if (at := text.find(name, start, end)) >= 0]
    return min(found)[1] if found else None


def _render(tokenizer: Tokenizer, day: date, messages: Sequence[Message], *, prompt: bool) -> str:
    try:
        return _template(chat_template(tokenizer)).render(
            messages=messages,
            tools=None,
            documents=None,
            add_generation_prompt=prompt,
            strftime_now=day.strftime,
            **_named_tokens(tokenizer),
        )
    except TemplateError as error:
        raise ConfigError(f"chat template of the tokenizer: {error}") from None


@functools.cache
def _template(text: str) -> Template:
    return _environment().from_string(text)


def _tags(template: str) -> set[str]:
    return set(re.findall(r"\{%-?\s*(\w+)", template))


def _safe(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[Message]:
    """The messages with special tokens in them parted, and without the marks of this module."""
    return [{**message, "content": _apart(message["content"], tokenizer)} for message in messages]


def _apart(content: str, tokenizer: Tokenizer) -> str:
    content = content.translate(_MARKS)
    for name in tokenizer.special_ids:
        content = content.replace(name, name[0] + _APART + name[1:])
    return content


def _named_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    """eos_token and its like: templates add them by name."""
    names = {token_id: name for name, token_id in tokenizer.special_ids.items()}
    roles = tokenizer.roles if isinstance(tokenizer, HuggingFaceTokenizer) else {}
    return {"bos_token": "", **roles, "eos_token": names.get(tokenizer.eos_id, "")}


class _Generation(Extension):
    """{% generation %} ... {% endgeneration %}, which transformers knows too: what the assistant writes."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Macro) -> str:
        return f"{_BEGIN}{caller()}{_END}"


@functools.cache
def _environment() -> ImmutableSandboxedEnvironment:
    """As transformers renders templates: they come with a model, so they are not trusted with anything."""

    def refuse(message: str) -> Any:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.globals["raise_exception"] = refuse
    environment.filters["tojson"] = functools.partial(json.dumps, ensure_ascii=False)  # jinja's own is for web pages
    return environment
