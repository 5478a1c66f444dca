"""Rendering of a model's Jinja chat template, which is not trusted: in a sandbox, within a time."""

import functools
import json
import re
import time
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, Template, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from titan_pt.config.errors import ConfigError

BEGIN, END = "\ufdd1", "\ufdd2"
"""Characters that no text holds. They mark where what the assistant writes begins and ends."""

SECONDS = 5.0
"""Longest rendering."""
# Longest text or list, and largest power, of one multiplication.
_MOST = 10**6


def render(template: str, **values: Any) -> str:
    """Render a chat template.

    `tools` is none, as in transformers, and for a template that cannot take it an empty list.

    Raises:
        ConfigError: the template cannot be read, refuses the values, fails, or takes too long.
    """
    first: Exception | None = None
    choices: tuple[list[Any] | None, ...] = (None, [])
    for tools in choices:
        try:
            return _rendered(template, {**values, "tools": tools})
        except Exception as error:  # of a foreign program, any
            first = first or error
            if isinstance(error, _TooLong):
                break
    if isinstance(first, TemplateError):
        raise ConfigError(f"chat template of the tokenizer: {first}")
    if isinstance(first, RecursionError):
        raise ConfigError("chat template of the tokenizer: calls itself without end")
    raise ConfigError(f"chat template of the tokenizer: {type(first).__name__}: {first}")


def tags(template: str) -> set[str]:
    """Names of the statements in a template."""
    return set(re.findall(r"\{%-?\s*(\w+)", template))


def _rendered(template: str, values: Mapping[str, Any]) -> str:
    compiled = _compiled(template)
    _CLOCK._start()
    return compiled.render(values)


@functools.cache
def _compiled(text: str) -> Template:
    return _environment().from_string(text)


class _TooLong(TemplateError):
    """A rendering is not done in its time."""


class _Clock:
    """Ends a rendering that takes too long: templates call it in each round of a loop and each call of a macro."""

    NAME = "0clock"  # which no template can write

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._end = time.monotonic() + SECONDS

    def __call__(self) -> None:
        if time.monotonic() > self._end:
            raise _TooLong(f"not done after {SECONDS:g} s")


_CLOCK = _Clock()


class _Generation(Extension):
    """The Jinja block {% generation %}, known from transformers: it surrounds what the assistant writes."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Macro) -> str:
        return f"{BEGIN}{caller()}{END}"


class _Sandbox(ImmutableSandboxedEnvironment):
    """A sandbox without endless loops and huge products."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for node in tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock, nodes.Block)):
            call = nodes.Call(nodes.Name(_Clock.NAME, "load"), [], [], None, None)
            node.body.insert(0, nodes.ExprStmt(call))  # type: ignore[attr-defined]
        tree.set_environment(self)
        tree.set_lineno(0)
        return tree

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and abs(right) > 64:
            raise TemplateError(f"a power of {right} is too large")
        if operator == "*":
            for one, other in ((left, right), (right, left)):
                if isinstance(one, str | list | tuple) and isinstance(other, int) and len(one) * other > _MOST:
                    raise TemplateError("a product is too long")
        if operator == "%" and isinstance(left, str) and re.search(r"%[^a-zA-Z]*\d{5}|\*", left):
            raise TemplateError("a field is too wide")
        return super().call_binop(context, operator, left, right)


@functools.cache
def _environment() -> Environment:
    """Build the sandbox that renders templates as transformers does."""

    def refuse(message: str) -> Any:
        raise TemplateError(message)

    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation])
    environment.globals |= {"raise_exception": refuse, _Clock.NAME: _CLOCK}
    del environment.globals["lipsum"]  # as many words as one asks for
    environment.filters["tojson"] = _tojson
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own is for web pages."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
