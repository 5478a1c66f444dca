"""Calls of tools in what a model writes, in the forms of Hermes and Qwen, and of Llama 3. No torch here."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

MOST_CALLS = 16
"""Calls of one turn that are read."""

_HERMES = re.compile(r"<tool_call>(.*?)(</tool_call>|\Z)", re.DOTALL)
_THOUGHTS = re.compile(r"\A(?:.*?</think>|\s*<think>.*)", re.DOTALL)
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
    """Calls {"name": ..., "arguments": {...}} between <tool_call> and </tool_call>; those in thoughts are none."""
    found = _HERMES.finditer(_THOUGHTS.sub("", text))
    return [
        _read(inner[1], "arguments") if inner[2] else _broken("<tool_call> has no </tool_call> behind it")
        for inner, _ in zip(found, range(MOST_CALLS), strict=False)
    ]


def read_llama3(text: str) -> list[ToolCall]:
    """A turn that is {"name": ..., "parameters": {...}}, or several with ";" between; <|python_tag|> may be before."""
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
    return _call(call["name"], arguments)


def _call(name: str, arguments: dict[str, Any]) -> ToolCall:
    try:
        json.dumps([name, arguments], ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return _broken(r"the call holds half of a surrogate pair; write both \ud... escapes, or the character itself")
    return ToolCall(name, arguments)


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
    return _call(name, arguments)


def _broken(why: str) -> ToolCall:
    return ToolCall("", {}, why)
