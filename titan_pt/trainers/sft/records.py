"""Records of questions or conversations: what the rows of known sets mean, and their tokens. No torch here.

The documents of gsm8k, medqa and arithmetic are what the tasks of grpo ask, with a worked answer: reinforcement
learning then goes on where fine-tuning ends.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard, TypeVar

import numpy as np

from titan_pt.components.tokenizer import Tokenizer
from titan_pt.config.builtin_datasets import complete
from titan_pt.config.errors import one_of, shown
from titan_pt.config.schema.job_config import JobConfig, Source
from titan_pt.config.schema.sft import SftConfig
from titan_pt.data.sources.formatters import RECORDS
from titan_pt.data.sources.formatters import Record as Row  # sources of the functions below are in fingerprints of data
from titan_pt.data.sources.records import register_records
from titan_pt.data.stream.encoding import Encoded
from titan_pt.hf.chat import Message, encode_behind, joined_parts, learnt_tokens, prompt_tokens
from titan_pt.hf.tokenizer_files import template_key
from titan_pt.tasks import gsm8k, medqa

Config = TypeVar("Config", bound=JobConfig)

# Of sources whose rows are another's.
_FORMATTERS = {"arithmetic": "gsm8k", "worked_problems": "gsm8k", "tool_sums": "tools"}


def with_records(config: Config, epochs: float | None = None) -> Config:
    """Set the formatters of all sources to those that make records.

    The formatter is "chat" where neither the source nor its name asks for another.

    Args:
        epochs: max_epochs of the sources that have none.
    """
    sources = [_with_records(s) for s in config.data.sources]
    sources = [s.model_copy(update={"max_epochs": s.max_epochs or epochs}) for s in sources]
    data = config.data.model_copy(update={"sources": sources})
    validation = config.validation.model_copy(update={"sources": [_with_records(s) for s in config.validation.sources]})
    return config.model_copy(update={"data": data, "validation": validation})


def reads_records(config: JobConfig) -> TypeGuard[SftConfig]:
    """Whether the run reads records and not plain text."""
    return isinstance(config, SftConfig)


def record_encoder(config: SftConfig) -> "Conversations":
    """The encoder that [sft] describes."""
    options = config.sft
    return Conversations(config.training.seq_len, options.on_bad_record, options.overlong)


def plain_text(text: str) -> str:
    """Join the texts of a record, one per line."""
    record = json.loads(text)
    said = [message.get("content") for message in record.get("messages", []) if isinstance(message, Mapping)]
    return "\n".join(map(str, [*said, *(record[name] for name in ("prompt", "completion") if name in record)]))


def _with_records(source: Source) -> Source:
    name = complete(source).formatter or _FORMATTERS.get(source.name, "chat")
    return source.model_copy(update={"formatter": RECORDS + name})


@dataclass(frozen=True)
class Conversations:
    """An Encoder of records.

    `prompt` and `completion` are laid end to end, with the end-of-document token; completion and end are learnt.
    `messages` are written by the chat template; what the assistant says and the ends of its turns are learnt.
    """

    seq_len: int
    on_bad_record: Literal["error", "skip"]
    overlong: Literal["error", "skip", "truncate"]

    def encode(self, text: str, tokenizer: Tokenizer, *, named: bool = False) -> Encoded:
        """Encode one record: token ids, which of them are learnt, and the UTF-8 bytes of the learnt text."""
        try:
            ids, learnt, answer = record_tokens(json.loads(text), tokenizer, named=named)
        except ValueError as error:
            if self.on_bad_record == "skip":
                return _left_out(str(error))
            raise ValueError(f'{error}; repair or remove it, or set sft.on_bad_record = "skip"') from None
        size = self.seq_len + 1
        if len(ids) > size:
            if self.overlong == "error":
                raise ValueError(
                    f"{len(ids)} tokens, and training.seq_len leaves {size}; raise it, or set sft.overlong = "
                    '"skip" or "truncate"'
                )
            if self.overlong == "skip" or not any(learnt[:size]):
                return _left_out("longer than training.seq_len")
        targets = np.array(learnt[:size], dtype=bool)
        kept = (max(1, targets.sum()) - 1) / max(1, sum(learnt) - 1)  # all, unless it is cut
        return Encoded(np.array(ids[:size], dtype=np.int32), targets, round(len(answer.encode()) * kept))

    def fingerprint(self, tokenizer: Tokenizer) -> str:
        """Identify the encoding of records, for checkpoints."""
        template = hashlib.sha256(template_key(tokenizer).encode()).hexdigest()[:12]
        return f"conversations/{self.on_bad_record}/{self.overlong}/{template}"


def record_tokens(
    record: Mapping[str, Any], tokenizer: Tokenizer, *, named: bool = False
) -> tuple[list[int], list[bool], str]:
    """(the tokens, whether each is learnt, the text that is).

    Args:
        named: names of special tokens in its texts stand for these tokens.

    Raises:
        ValueError: what is wrong with the record.
    """
    if "bad" in record:
        raise ValueError(record["bad"])
    if "messages" in record:
        tools = record.get("tools", ())
        messages = check_messages(record["messages"], calls=bool(tools))
        ids, learnt = learnt_tokens(tokenizer, messages, named=named, tools=tools)
        return ids, learnt, "".join(_said(message) for message in messages if _is_learnt(message))
    prompt, completion = (_text(record, name, f"{name!r}") for name in ("prompt", "completion"))
    asked = prompt_tokens(tokenizer, prompt, named=named)
    answered = [*encode_behind(tokenizer, completion, named=named), tokenizer.eos_id]
    return asked + answered, [False] * len(asked) + [True] * len(answered), completion


def check_messages(messages: Any, *, calls: bool = False) -> list[Message]:
    """The messages, if they are a conversation: a system's or none, then a user's and an assistant's in turns.

    Contents are texts, or lists of parts of text, which are joined. What the assistant says with a `weight` of 0 is
    not learnt.

    Args:
        calls: the assistant's turn may be several, of which each but the last calls tools, and their results follow.

    Raises:
        ValueError: they are not, or nothing is learnt of them.
    """
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"'messages' is {shown(messages)}; want a list of objects with role and content")
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise ValueError(f"message {number} is {shown(message)}; want an object with role and content")
        if message.get("tool_calls") and not calls:
            raise ValueError(
                f"message {number} calls tools, and the record tells of none; records with 'messages' and 'tools' are "
                'read with formatter = "tools"'
            )
    roles = [str(message.get("role")) for message in messages]
    letters = "".join(_letter(message) for message in messages)
    if not re.fullmatch(f"s?(u{'(ct+)*' if calls else ''}a)+", letters):
        called = " whose calls each have their results, of the role tool, behind them," if calls else ""
        raise ValueError(
            f"the roles are {', '.join(roles)}; want a user's and an assistant's in turns,{called} after a "
            "system's or none, an assistant's last"
        )
    found = [_checked(message, number) for number, message in enumerate(messages)]
    if not any(map(_is_learnt, found)):
        raise ValueError("every message of the assistant has weight 0, so that nothing is learnt")
    return found


def _letter(message: Mapping[str, Any]) -> str:
    """A letter for the role of a message, "c" for an assistant's that calls tools."""
    known = {"system": "s", "user": "u", "assistant": "c" if message.get("tool_calls") else "a", "tool": "t"}
    return known.get(str(message.get("role")), "?")


def _checked(message: Mapping[str, Any], number: int) -> Message:
    where = f"the content of message {number}"
    message = {**message, "content": joined_parts(message.get("content"), where)}
    calls = message.pop("tool_calls", None)  # an empty list would be calls to some templates
    if calls:
        message |= {"content": message["content"] or "", "tool_calls": _calls(calls, number)}
    if message["content"] or not calls:
        _text(message, "content", where)
    if message.get("weight") not in (None, 0, 1):
        raise ValueError(f"the weight of message {number} is {shown(message['weight'])}; want 0 or 1")
    return message


def _calls(calls: Any, number: int) -> list[dict[str, Any]]:
    """The calls of a message with their arguments as objects, which some sets write as JSON texts."""
    found = []
    for call in calls if isinstance(calls, list) else [calls]:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        function = function if isinstance(function, Mapping) else {}
        name, arguments = function.get("name"), function.get("arguments")
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        if not isinstance(name, str) or not isinstance(arguments, Mapping):
            raise ValueError(f"message {number} has the call {shown(call)}; want a function with name and arguments")
        found.append({"type": "function", "function": {"name": name, "arguments": dict(arguments)}})
    return found


def _said(message: Message) -> str:
    """What a message says: its content and its calls."""
    return message["content"] + "".join(json.dumps(call["function"]) for call in message.get("tool_calls", ()))


def _is_learnt(message: Message) -> bool:
    return message["role"] == "assistant" and message.get("weight") != 0


def _text(record: Mapping[str, Any], name: str, what: str) -> str:
    value = record.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{what} is {shown(value)}; want text")
    value.encode()  # a UnicodeEncodeError is a ValueError
    return value


def _left_out(reason: str) -> Encoded:
    return Encoded(np.zeros(0, dtype=np.int32), None, 0, reason)


def _chat(row: Row) -> Row:
    """A row of `messages`, or of `prompt` and `completion`; other columns do not matter.

    Prompt and completion may be the two parts of one conversation, of which the second is learnt.
    """
    if row.get("messages") is None and all(isinstance(row.get(name), list) for name in ("prompt", "completion")):
        return {"messages": [*map(_not_learnt, row["prompt"]), *row["completion"]]}
    for names in (("messages",), ("prompt", "completion")):
        if all(row.get(name) is not None for name in names):
            return {name: row[name] for name in names}
    raise ValueError(f"neither 'messages' nor 'prompt' and 'completion'; it has {one_of(row)}")


def _not_learnt(message: Any) -> Any:
    return {**message, "weight": 0} if isinstance(message, Mapping) and message.get("role") == "assistant" else message


def _example(prompt_and_completion: tuple[str, str]) -> Row:
    prompt, completion = prompt_and_completion
    return {"prompt": prompt, "completion": completion}


def _tools(row: Row) -> Row:
    """A row of `messages` and `tools`, the JSON schemas of functions: a list, or its text."""
    tools = json.loads(row["tools"]) if isinstance(row.get("tools"), str) else row.get("tools")
    if not isinstance(tools, list) or not tools or not all(isinstance(tool, Mapping) for tool in tools):
        raise ValueError(f"'tools' is {shown(tools)}; want a list of JSON schemas of functions")
    return {"messages": row.get("messages"), "tools": tools}


register_records("chat", _chat)
register_records("tools", _tools)
register_records("gsm8k", lambda row: _example(gsm8k.example(row)))
register_records("medqa", lambda row: _example(medqa.example(row)))
