"""Calls of tools in what a model writes: the forms of Hermes and Qwen, and of Llama 3, known by the chat template.

No name of a model is asked for: a form is a template's if its parser reads back the call that the template writes.
"""

import functools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from titan_pt.components.tokenizer import Tokenizer
from titan_pt.config.errors import ConfigError
from titan_pt.hf.chat import chat_text

MOST_CALLS = 16
"""Calls of one turn that are read."""

_HERMES = re.compile(r"<tool_call>(.*?)(</tool_call>|\Z)", re.DOTALL)
_THOUGHTS = re.compile(r"\A.*?</think>", re.DOTALL)
_PYTHON_TAG = "<|python_tag|>"
# Of tools that Llama 3 knows by itself: brave_search.call(query="...").
_DOTTED = re.compile(r"(\w+)\.call\((.*)\)\s*", re.DOTALL)
_ARGUMENT = re.compile(r'\s*(\w+)\s*=\s*("(?:[^"\\]|\\.)*"|[-+.\w]+)\s*(?:,|\Z)', re.DOTALL)


@dataclass(frozen=True)
class ToolCall:
    """One call of a tool; plain data."""

    name: str
    """Name of the tool, or an empty text where the call cannot be read."""
    arguments: Mapping[str, Any]
    error: str = ""
    """Why the call cannot be read, in words for the model; empty where it can."""

    def as_json(self) -> dict[str, Any]:
        """The call as chat templates read it."""
        return {"type": "function", "function": {"name": self.name, "arguments": dict(self.arguments)}}


Parser = Callable[[str], list[ToolCall]]
"""What the model wrote in a turn -> its calls, of which some may be errors; none where it calls nothing."""


def read_hermes(text: str) -> list[ToolCall]:
    """Calls between <tool_call> and </tool_call>, each {"name": ..., "arguments": {...}}; those in thoughts are none."""
    found = _HERMES.finditer(_THOUGHTS.sub("", text))
    return [
        _read(inner[1], "arguments") if inner[2] else _broken("<tool_call> has no </tool_call> behind it")
        for inner, _ in zip(found, range(MOST_CALLS), strict=False)
    ]


def read_llama3(text: str) -> list[ToolCall]:
    """A turn that is {"name": ..., "parameters": {...}}, or several with a ";" between, behind <|python_tag|> or not."""
    tagged, text = text.lstrip().startswith(_PYTHON_TAG), text.strip().removeprefix(_PYTHON_TAG).strip()
    if dotted := _DOTTED.fullmatch(text) if tagged else None:
        return [_read_dotted(dotted[1], dotted[2])]
    if not tagged and not text.startswith("{"):
        return []
    calls: list[ToolCall] = []
    while len(calls) < MOST_CALLS:
        try:
            _, end = json.JSONDecoder().raw_decode(text)
        except (ValueError, RecursionError):
            end = len(text)
        rest = text[end:].lstrip()
        calls.append(_read(text[:end], "parameters"))
        if not rest:
            break
        if not rest.startswith(";"):
            calls[-1] = _broken(f"there is text behind the call: {rest[:40]!r}")
            break
        text = rest[1:].lstrip()
    return calls


FORMS: dict[str, Parser] = {"Hermes (Qwen3)": read_hermes, "Llama 3": read_llama3}
"""Parsers by the name of their form."""

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


@functools.lru_cache(maxsize=8)
def tool_form(tokenizer: Tokenizer) -> Parser:
    """The parser of the calls that the tokenizer's chat template writes.

    Raises:
        ConfigError: the template tells the model of no tools, writes calls in another form, or no results.
    """
    asked = [{"role": "user", "content": "What is that?"}]
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
    start = len(_common(prompt, written))
    for read in FORMS.values():
        if any(_same(read(turn)) for turn in _turns(written[start:])):
            return read
    turn = written[start:].strip()
    raise ConfigError(
        f"{what}: writes a call in an unknown form, {turn[:200]!r}; known are {' and '.join(FORMS)}: "
        '<tool_call>{"name": ..., "arguments": {...}}</tool_call>, and {"name": ..., "parameters": {...}}; ' + fix
    )


def _same(calls: list[ToolCall]) -> bool:
    return calls == [_CALL]


def _turns(text: str) -> list[str]:
    """A turn without the token that ends it, which may be any: what is up to each line's or name's end."""
    ends = [found.start() for found in re.finditer(r"<\||</s>|\s*\Z", text)]
    return [text, *(text[:end] for end in ends)]


def _common(left: str, right: str) -> str:
    size = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
    return left[:size]


def _read(text: str, key: str) -> ToolCall:
    """A call of the form {"name": ..., key: {...}}."""
    want = f'write {{"name": ..., "{key}": {{...}}}}'
    try:
        call = json.loads(text)
    except (ValueError, RecursionError) as error:
        return _broken(f"the call is not JSON ({str(error)[:60]}); {want}")
    if not isinstance(call, dict) or not isinstance(call.get("name"), str) or not call["name"]:
        return _broken(f"the call names no tool; {want}")
    arguments = call.get(key, {})
    if not isinstance(arguments, dict):
        return _broken(f"{key!r} of the call is no object; {want}")
    return ToolCall(call["name"], arguments)


def _read_dotted(name: str, text: str) -> ToolCall:
    """A call of the form name.call(key="value", ...)."""
    arguments, at = {}, 0
    while at < len(text.rstrip()):
        found = _ARGUMENT.match(text, at)
        try:
            assert found
            arguments[found[1]] = json.loads(found[2])
        except (AssertionError, ValueError, RecursionError):
            return _broken(f'the arguments cannot be read; write {name}.call(name="value")')
        at = found.end()
    return ToolCall(name, arguments)


def _broken(why: str) -> ToolCall:
    return ToolCall("", {}, why)
