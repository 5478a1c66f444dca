"""Rendering of a model's Jinja chat template, which is not trusted: in a sandbox, within a time."""

import functools
import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jinja2 import Environment, Template, TemplateError, Undefined, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from titan_pt.config.errors import ConfigError
from titan_pt.hf import template_bounds as bounds
from titan_pt.run.exit_codes import Preempted
from titan_pt.run.signals import stop_requested

BEGIN, END = "\ufdd1", "\ufdd2"
"""Characters that no text holds. They mark where what the assistant writes begins and ends."""

SECONDS = 5.0
"""Longest rendering, or reading of a template, in seconds of this thread's own work."""
LONGEST = 200_000
"""Characters of the longest template; compiling them takes as long as SECONDS."""


def render(template: str, *, tools: Sequence[Any] = (), **values: Any) -> str:
    """Render a chat template.

    Without `tools` it gets none, as in transformers, and one that cannot take that an empty list.

    Raises:
        ConfigError: the template cannot be read, refuses the values, fails, or takes too long.
    """
    first: Exception | None = None
    choices: tuple[list[Any] | None, ...] = ([*tools],) if tools else (None, [])
    for choice in choices:
        try:
            return _rendered(template, {**values, "tools": choice})
        except Exception as error:  # of a foreign program, any
            first = first or error
            if isinstance(error, bounds.TooMuchError | Preempted):
                break
    if isinstance(first, Preempted):
        raise first
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
    if len(text) > LONGEST:
        raise bounds.TooMuchError(f"has {len(text):,} characters; {LONGEST:,} are read")
    _CLOCK._start()
    return _environment().from_string(text)


class _Clock(threading.local):
    """Ends a rendering of this thread that takes too long or makes too much, or when the process is asked to stop.

    Templates call it in each round of a loop, for each comparison, test and part of a value, and in each call of a
    macro, a filter and a method.
    """

    NAME = "0clock"  # which no template can write

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._end, self._work = time.monotonic() + SECONDS, time.thread_time() + SECONDS
        self.made = bounds.Made()

    def __call__(self) -> bool:
        if stop_requested() and threading.current_thread() is threading.main_thread():
            raise Preempted
        # The wall's time is quicker to ask for; this thread may have waited for others.
        if time.monotonic() > self._end and time.thread_time() > self._work:
            raise bounds.TooMuchError(f"not done after {SECONDS:g} s")
        return True


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


class _Code(CodeGenerator):
    """Code in which `~`, comparisons and written lists are bounded."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.concat((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        self.write("environment.timed(")
        super().visit_Compare(node, frame)
        self.write(")")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        wrapped = isinstance(node.arg, nodes.Slice)  # what is no slice, `getitem` times
        self.write("environment.counted(" if wrapped else "")
        super().visit_Getitem(node, frame)
        self.write(")" if wrapped else "")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        self.write("environment.counted(")
        super().visit_List(node, frame)
        self.write(")")

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        if node.ctx == "store":  # names that a value is unpacked to
            super().visit_Tuple(node, frame)
            return
        self.write("environment.counted(")
        super().visit_Tuple(node, frame)
        self.write(")")

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self.write("environment.counted(")
        super().visit_Dict(node, frame)
        self.write(")")


def _joined(parts: Iterable[Any]) -> str:
    """What a template, a macro or `~` writes."""
    return "".join(bounds.texts(_timed(parts), _CLOCK.made.add))


def _timed(parts: Iterable[Any]) -> Iterable[Any]:
    for part in parts:
        _CLOCK()
        yield part


def _written(value: Any) -> Any:
    """A value that a template writes, unless it is too long."""
    if not isinstance(value, str):
        _CLOCK.made.add(bounds.size_of(value))
    return value


def _timed_value(value: Any) -> Any:
    """A value that took some time."""
    _CLOCK()
    return value


class _Sandbox(ImmutableSandboxedEnvironment):
    """A sandbox without endless loops and huge values."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})
    code_generator_class = _Code
    concat = staticmethod(_joined)
    counted = staticmethod(lambda value: _counted(value))
    timed = staticmethod(_timed_value)

    def getitem(self, obj: Any, argument: Any) -> Any:
        _CLOCK()
        return super().getitem(obj, argument)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for node in tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock, nodes.Block)):
            call = nodes.Call(nodes.Name(_Clock.NAME, "load"), [], [], None, None)
            node.body.insert(0, nodes.ExprStmt(call))  # type: ignore[attr-defined]
            if isinstance(node, nodes.For) and node.test is not None:
                node.test = nodes.And(call, node.test)
        tree.set_environment(self)
        tree.set_lineno(0)
        return tree

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            bounds.check_power(left, right)
        elif operator == "*":
            bounds.check_product(left, right)
        elif operator == "%":
            _CLOCK.made.add(bounds.check_percent(left, right))
        elif isinstance(left, str | bytes | list | tuple) and isinstance(right, str | bytes | list | tuple):
            _CLOCK.made.add(len(left) + len(right))
        return _counted(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        bound = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps str.format
        owner, name = getattr(bound, "__self__", None), getattr(bound, "__name__", "")
        if not isinstance(owner, str | bytes | int | float):
            return _counted(super().call(__context, __obj, *args, **kwargs))
        _CLOCK()
        if name == "join" and args and not isinstance(args[0], str | Undefined):
            args = (list(args[0]), *args[1:])
        _CLOCK.made.add(bounds.most_of_method(name, owner, args, kwargs))
        return _counted(super().call(__context, __obj, *args, **kwargs))


def _counted(value: Any) -> Any:
    """A value that was made: with all that is in it, for it may hold the same list again and again."""
    _CLOCK()
    if isinstance(value, str | bytes):
        _CLOCK.made.add(len(value))
    elif isinstance(value, list | tuple | dict):
        _CLOCK.made.add(bounds.size_of(value))
    return value


def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that is bounded in what it makes."""
    skipped = int(hasattr(function, "jinja_pass_arg"))  # the environment, before the value

    @functools.wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        _CLOCK()
        _CLOCK.made.add(bounds.most_of_filter(name, args[skipped:], kwargs))
        return _counted(function(*args, **kwargs))

    return bounded


def _timed_test(test: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(test)
    def timed(*args: Any, **kwargs: Any) -> Any:
        _CLOCK()
        return test(*args, **kwargs)

    return timed


@functools.cache
def _environment() -> Environment:
    """Build the sandbox that renders templates as transformers does."""

    def refuse(message: Any) -> Any:
        raise TemplateError(str(_written(message))[:1000])

    environment = _Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", _Generation],
        finalize=_written,
    )
    environment.globals |= {"raise_exception": refuse, _Clock.NAME: _CLOCK}
    del environment.globals["lipsum"]  # as many words as one asks for
    del environment.filters["urlize"]  # any time, and of no use to a model
    add = functools.partial(environment.call_binop, None, "+")
    own = {"tojson": _tojson, "join": bounds.joining(lambda size: _CLOCK.made.add(size)), "sum": bounds.summing(add)}
    every = {**environment.filters, **own}
    environment.filters |= {name: _bounded(name, function) for name, function in every.items()}
    timed: Any = {name: _timed_test(test) for name, test in dict[str, Any](environment.tests).items()}
    environment.tests |= timed
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
