"""Which form of calls a chat template writes, found by what it does.

No name of a model is asked for: a form is a template's if its parser reads back the call that the template writes.
"""

import re
from itertools import takewhile

from titan_pt.components.tokenizer import Tokenizer
from titan_pt.config.errors import ConfigError
from titan_pt.hf.chat import Message, chat_text
from titan_pt.hf.tool_calls import FORMS, Parser, ToolCall

_TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Looks up.",
        "parameters": {"type": "object", "properties": {"word": {"type": "string", "description": "a word"}}},
    },
}
_CALL = ToolCall("look_up", {"word": "heron"})
_RESULT = "A bird of 3 lakes."


def tool_form(tokenizer: Tokenizer) -> Parser:
    """The parser of the calls that the tokenizer's chat template writes.

    Raises:
        ConfigError: the template tells the model of no tools, writes calls in another form, or no results.
    """
    asked: list[Message] = [{"role": "user", "content": "What is that?"}]
    called = [*asked, {"role": "assistant", "content": "", "tool_calls": [_CALL.as_json()]}]
    results = [*called, {"role": "tool", "name": "look_up", "content": _RESULT, "tool_call_id": "call00001"}]
    what = "chat template of the tokenizer"
    fix = "play without tools, or start from a model whose template has them"
    prompt = chat_text(tokenizer, asked, tools=[_TOOL])
    if "look_up" not in prompt:
        raise ConfigError(f"{what}: does not write `tools`, so that the model cannot know them; {fix}")
    written = chat_text(tokenizer, called, prompt=False, tools=[_TOOL])
    if _RESULT not in chat_text(tokenizer, results, tools=[_TOOL]):
        raise ConfigError(f"{what}: does not write messages of the role tool, the results of calls; {fix}")
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt, written, strict=False)))
    turn = written[same:]
    for read in FORMS.values():
        if any(read(text) == [_CALL] for text in _without_end(turn)):
            return read
    raise ConfigError(
        f"{what}: writes a call in an unknown form, {turn.strip()[:200]!r}; known are {' and '.join(FORMS)}: "
        '<tool_call>{"name": ..., "arguments": {...}}</tool_call>, and {"name": ..., "parameters": {...}}; ' + fix
    )


def _without_end(turn: str) -> list[str]:
    """A turn, and what it is up to each token that may end it."""
    return [turn, *(turn[: found.start()] for found in re.finditer(r"<\||</s>", turn))]
