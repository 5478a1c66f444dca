"""What an environment says, as the tokens that follow a turn of the model; what was read stays as it is."""

import functools
import json
from collections.abc import Sequence

from titan_pt.components.named_tokens import encode_named
from titan_pt.components.tokenizer import Tokenizer
from titan_pt.config.errors import ConfigError
from titan_pt.environments.protocol import Message
from titan_pt.hf.chat import as_text, chat_text, control_ids, encode_behind, stop_ids
from titan_pt.tasks.task import Task

_QUESTION, _ANSWER = "What is said.", "What it says."


class AnswerTokens:
    """Encodes what an environment says to a model that was asked in a task's way.

    Through the chat template these are the tokens that it writes behind a turn of the model, whose end token the model
    drew itself, up to the beginning of its next turn. They depend on the messages alone: a template that shows earlier
    turns otherwise once others follow, as Qwen3's that leaves out what was thought, does not change what was read.

    Raises:
        ConfigError: the template does not show where an answer goes on.
    """

    def __init__(self, tokenizer: Tokenizer, task: Task) -> None:
        self._tokenizer, self._task = tokenizer, task
        self._encode = functools.lru_cache(4096)(self._encoded)
        self._ends = [name for name, i in control_ids(tokenizer).items() if i in stop_ids(tokenizer)]
        if task.chat:
            self([{"role": "user", "content": _QUESTION}])

    def __call__(self, messages: Sequence[Message]) -> list[int]:
        return list(self._encode(json.dumps(messages)))

    def _encoded(self, messages: str) -> tuple[int, ...]:
        said: list[Message] = json.loads(messages)
        if not self._task.chat:
            text = self._task.plain(said, str if self._task.special_tokens else self._as_text)
            return tuple(encode_behind(self._tokenizer, f"\n\n{text}", named=True))
        talk = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
        text = self._text([*talk, *said])
        for i, message in enumerate(said):
            other = [*said[:i], {**message, "content": f"{message['content']}."}, *said[i + 1 :]]
            if message["content"].strip() and self._text([*talk, *other]) == text:
                raise ConfigError(
                    f"grpo.tasks ({self._task.name!r}): the chat template does not write a message of the role "
                    f"{message['role']!r}, which the model would never read; let the environment give another role"
                )
        before, found, tail = text.partition(_ANSWER)
        start = chat_text(self._tokenizer, talk, prompt=False, tools=self._task.tools).partition(_ANSWER)[2].lstrip()
        end = max((name for name in self._ends if start.startswith(name)), key=len, default="")
        if not found or not tail.lstrip().startswith(end) or not before:
            raise ConfigError(
                f"grpo.tasks ({self._task.name!r}): its environment answers in turns, and the tokenizer's chat "
                "template does not write an assistant's turn and what follows it one behind the other; give another "
                "template, or ask in plain text with chat = false"
            )
        return tuple(encode_named(self._tokenizer, tail.lstrip().removeprefix(end) if end else tail, behind=True))

    def _text(self, messages: Sequence[Message]) -> str:
        return chat_text(self._tokenizer, messages, tools=self._task.tools)

    def _as_text(self, content: str) -> str:
        return as_text(self._tokenizer, content)
