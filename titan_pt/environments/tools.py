"""Tools: functions that the model calls in the form of its chat template, and whose results it reads as its next turn.

An environment of tools goes with any task of one answer: `replace(task, environment=ToolEnvironment([...]))`. The turn
without a call is the answer, which the task grades. What is wrong with a call is its result, in words: that trains too.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from titan_pt.environments.protocol import Environment, EpisodeState, ModelTurn, Reply
from titan_pt.hf.tool_calls import ToolCall

LONGEST_RESULT = 2_000
"""Characters of a result; of a longer one the rest is left out."""

CALLS, ERRORS = "tool_calls", "tool_errors"
"""Reward parts: the calls of an episode, and those that were answered by an error."""

_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}


@dataclass(frozen=True)
class CallableTool:
    """A function that a model may call; it is sent to other processes, so that `function` is one of a module."""

    schema: Mapping[str, Any]
    """JSON schema in the form of chat templates: {"type": "function", "function": {"name", "description",
    "parameters"}}."""
    function: Callable[..., Any]
    """Takes the parameters by name and gives the result, which is written as text. A ValueError is told to the model;
    any other error is a mistake of the tool and counted as one of its environment."""

    @property
    def name(self) -> str:
        """Name by which it is called."""
        return str(self.schema["function"]["name"])

    def result(self, arguments: Mapping[str, Any]) -> str:
        """The result of a call.

        Raises:
            ValueError: the arguments are wrong; says how.
        """
        parameters = self.schema["function"].get("parameters", {})
        known = parameters.get("properties", {})
        for name, value in arguments.items():
            if name not in known:
                raise ValueError(f"there is no argument {name!r}; {self.name} has {', '.join(known) or 'none'}")
            wanted = _TYPES.get(str(known[name].get("type")))
            is_truth = isinstance(value, bool) and wanted and bool not in wanted
            if wanted and (is_truth or not isinstance(value, wanted)):
                raise ValueError(f"{name!r} is no {known[name]['type']}")
        missing = [name for name in parameters.get("required", ()) if name not in arguments]
        if missing:
            raise ValueError(f"{missing[0]!r} is missing")
        return str(self.function(**arguments))


class ToolEnvironment(Environment):
    """Answers the calls of tools until a turn has none; that turn is the answer, which the task grades.

    Args:
        turns: most turns of the model; a call in the last of them is not answered, and the answer is missing.
    """

    rewards = (CALLS, ERRORS)

    def __init__(self, tools: Sequence[CallableTool], turns: int = 4) -> None:
        self._tools, self._turns = {tool.name: tool for tool in tools}, turns
        self.tools = [tool.schema for tool in tools]

    def step(self, state: EpisodeState, turn: ModelTurn) -> Reply:
        """Answer the calls of a turn, each by a message of the role tool."""
        if not turn.calls or state.turn + 1 >= self._turns:
            return Reply(done=True)
        answers = [self._answer(call) for call in turn.calls]
        messages = [
            {"role": "tool", "name": call.name, "content": text if len(text) <= LONGEST_RESULT else _cut(text)}
            for call, (text, _) in zip(turn.calls, answers, strict=True)
        ]
        errors = sum(is_error for _, is_error in answers)
        return Reply(messages, rewards={CALLS: float(len(answers)), ERRORS: float(errors)})

    def _answer(self, call: ToolCall) -> tuple[str, bool]:
        """(result of a call, whether it is an error)."""
        try:
            if call.error:
                raise ValueError(call.error)
            if call.name not in self._tools:
                raise ValueError(f"there is no tool {call.name[:40]!r}; there is {', '.join(self._tools)}")
            return self._tools[call.name].result(call.arguments), False
        except ValueError as error:
            return f"error: {error}", True


def _cut(text: str) -> str:
    return f"{text[:LONGEST_RESULT]} [{len(text) - LONGEST_RESULT} more characters]"
