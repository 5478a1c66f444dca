"""The protocol of environments: what answers the model's turns, and says when an episode is over and what it earned.

A task with `Task.environment` is played in turns: the environment's `reset` gives the conversation up to the model's
first turn; after each turn of the model `step` gives the messages that follow it, or ends the episode. A task without
one is the case of a single turn. An environment comes by its task: `tasks.task.register_task` makes both known, and a
built-in one enters `_TASKS` there ("guess_number" is `titan_pt.environments.guess_number:build`).

What an environment has to keep:

- `reset` runs in the training process, `step` in processes of their own (`environments.pool`): the environment is
  pickled to them once, each `EpisodeState` for each call. It holds no sockets, locks or lambdas; heavy imports belong
  into `step`, and the module that defines it should not import torch.
- Nothing is kept in the environment between calls: two turns of an episode may be answered by different processes. What
  an episode has to remember is in `EpisodeState`: its problem, its messages, and the `memory` of the last reply.
- It is a function of its arguments, so that a run can be repeated: what is random is drawn from the problem, which
  `Problems.get(index, visit)` makes from the seed, its index and the visit, for example `Problem.gold` or its id.

Tokens are exact: an episode is a list of token ids, in which the model's own are those that it sampled. A message
becomes the tokens that the chat template writes between two turns of the model, or those of the task's template where
the model is asked in plain text; nothing that was read is ever encoded again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from titan_pt.hf.tool_calls import ToolCall
from titan_pt.tasks.task import Problem

Message = Mapping[str, Any]
"""A turn of a conversation, as chat templates read it: "role" and "content", and what else the template knows."""

CORRECT = "correct"
"""Name of the reward part that says whether an episode is right; without it `Task.grade` reads the last turn."""


@dataclass(frozen=True)
class EpisodeState:
    """An episode before the model's newest turn is answered; plain data."""

    problem: Problem
    messages: Sequence[Message]
    """The conversation so far: those of `reset`, and each turn and its reply. The newest turn is not among them."""
    turn: int = 0
    """Number of the model's newest turn, from 0."""
    memory: Any = None
    """`Reply.memory` of the turn before; None before the first."""


@dataclass(frozen=True)
class ModelTurn:
    """What the model wrote in one turn."""

    text: str
    """Text without the token that ended the turn."""
    num_tokens: int
    """Tokens of the turn, the one that ended it included."""
    calls: Sequence[ToolCall] = ()
    """The calls of tools in it, where the environment has `tools`: read in the form of the model's chat template."""

    def message(self) -> Message:
        """The turn as a message."""
        return {"role": "assistant", "content": self.text}


@dataclass(frozen=True)
class Reply:
    """The answer to one turn of the model: messages, or the end of the episode."""

    messages: Sequence[Message] = ()
    """What the model reads before its next turn; of no effect where the episode is done."""
    done: bool = False
    """Whether the episode is over."""
    rewards: Mapping[str, float] = field(default_factory=dict)
    """Reward parts by name, added up over the turns. `rewards` of [[grpo.tasks]] weighs them; others are recorded
    alone. A sum of "correct" of 1 or more says that the episode is right; where no turn gives that part, `Task.grade`
    decides by the text of the last turn."""
    memory: Any = None
    """Plain data for `EpisodeState.memory` of the next turn."""


class Environment(Protocol):
    """What answers the model's turns. Subclass it: the attributes have defaults."""

    rewards: Sequence[str] = ()
    """Names of the reward parts that `step` may give, which `rewards` of [[grpo.tasks]] may then weigh."""
    tools: Sequence[Mapping[str, Any]] = ()
    """JSON schemas of functions that the model may call, for `tools` of the chat template."""

    @property
    def has_own_reset(self) -> bool:
        """Whether a subclass decides what the model is asked."""
        return type(self).reset is not Environment.reset

    def reset(self, problem: Problem) -> Sequence[Message]:
        """The conversation before the model's first turn; by default the problem's question, from the user."""
        return [{"role": "user", "content": problem.question}]

    def step(self, state: EpisodeState, turn: ModelTurn) -> Reply:
        """Answer a turn. Runs in a process of the pool, within a time and a memory limit."""
        ...
