"""Prompts as tokens, and the texts that a model makes of them, printed while they grow."""

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from titan_pt.config.errors import ConfigError
from titan_pt.tools.model import OpenModel

if TYPE_CHECKING:
    from titan_pt.components.tokenizer import Tokenizer
    from titan_pt.generation.engine import Completion
    from titan_pt.generation.sampling import Sampling
    from titan_pt.hf.chat import Message

DEFAULT_NEW_TOKENS = 256
"""Most tokens of a text, where no flag says and the model has room."""


class TextStream:
    """Prints a text while it is generated, in whole characters.

    Args:
        stop_ids: tokens that end the text and are not printed.
    """

    def __init__(self, tokenizer: "Tokenizer", stop_ids: Sequence[int], write: Callable[[str], object]) -> None:
        self._tokenizer, self._stop_ids, self._write = tokenizer, frozenset(stop_ids), write
        self._written = ""

    def __call__(self, rows: list[list[int]], *, final: bool = False) -> None:
        """Print what is new in the first row; an incomplete character at its end waits for `final`."""
        text = self._tokenizer.decode([token for token in rows[0] if token not in self._stop_ids])
        if not final:
            text = text.rstrip("\ufffd")
        if text.startswith(self._written):
            self._write(text[len(self._written) :])
            self._written = text


def printed(text: str) -> None:
    """Print a part of a text at once."""
    print(text, end="", flush=True)


def stream_text(
    opened: OpenModel,
    ids: Sequence[int],
    chosen: "Sampling",
    *,
    chat: bool,
    write: Callable[[str], object] = printed,
    key: int = 0,
) -> None:
    """Generate one text, and write it while it grows.

    Args:
        key: another one draws another text with the same seed.
    """
    stream = TextStream(opened.source.tokenizer, opened.stop_ids(chat=chat), write)
    (completion,) = opened.engine(stride=1, chat=chat).generate([ids], chosen, 1, [key], watch=stream)
    stream([completion.token_ids], final=True)
    print(flush=True)


def prompt_ids(opened: OpenModel, prompt: "str | Sequence[Message]", *, raw: bool, named: bool) -> list[int]:
    """Encode a prompt to continue: a conversation, or a text, which is a first turn if the model knows chats.

    Args:
        named: names of special tokens in it stand for these tokens.
    """
    from titan_pt.hf.chat import chat_tokens, prompt_tokens

    tokenizer = opened.source.tokenizer
    if not isinstance(prompt, str):
        return chat_tokens(tokenizer, prompt, named=named)
    if opened.source.knows_chat and not raw:
        return chat_tokens(tokenizer, [{"role": "user", "content": prompt}], named=named)
    # Without anything to continue: a document from its beginning.
    return prompt_tokens(tokenizer, prompt, named=named) or [tokenizer.eos_id]


def new_tokens(
    opened: OpenModel, arguments: argparse.Namespace, prompts: Sequence[Sequence[int]], names: Sequence[str]
) -> int:
    """Return --max_new_tokens, or by default what the model has room for after the longest prompt.

    Raises:
        ConfigError: there is no room.
    """
    longest = max(range(len(prompts)), key=lambda i: len(prompts[i]))
    room = opened.source.args.max_seq_len - len(prompts[longest])
    wished = arguments.max_new_tokens or min(DEFAULT_NEW_TOKENS, max(room, 1))
    if wished > room:
        fix = f"lower --max_new_tokens to {room} or less, or shorten it" if room > 0 else "shorten it"
        raise ConfigError(
            f"{names[longest]}: {len(prompts[longest])} tokens and --max_new_tokens = {wished} are more than the "
            f"model reads, {opened.source.args.max_seq_len}; {fix}"
        )
    return wished


def text_of(opened: OpenModel, completion: "Completion") -> str:
    """The text of a completion, without the token that ended it."""
    ids = completion.token_ids
    return opened.source.tokenizer.decode(ids if completion.finish_reason == "length" else ids[:-1])
