"""`python -m titan_pt.tools.chat MODEL`: a conversation with a model, on a terminal or from a file of lines."""

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from titan_pt.config.errors import ConfigError, nearest
from titan_pt.tools.command import INTEGER, ToolParser, run_tool
from titan_pt.tools.model import OpenModel, add_model_flags, add_sampling_flags, open_model, sampling, sampling_problems
from titan_pt.tools.texts import DEFAULT_NEW_TOKENS, new_tokens, printed, prompt_ids, stream_text

if TYPE_CHECKING:
    from titan_pt.hf.chat import Message

_COMMANDS = {
    "/reset": "forget what was said",
    "/system": "TEXT: begin anew, with this said to the model beforehand; without TEXT with nothing",
    "/help": "these lines",
    "/quit": "end the chat, as Ctrl-D does",
}


def main(argv: list[str] | None = None) -> int:
    """Talk as the arguments say; returns the exit code."""
    return run_tool(lambda: _chat(_parser().parse_args(argv)))


def _parser() -> ToolParser:
    parser = ToolParser(prog="python -m titan_pt.tools.chat", description=__doc__)
    parser.epilog = "In the chat: " + "; ".join(f"{name} {what}" for name, what in _COMMANDS.items())
    add_model_flags(parser)
    parser.add_argument("--system", metavar="TEXT", help="said to the model before the conversation")
    parser.add_argument(
        "--context",
        type=INTEGER,
        help="most tokens of the conversation, its oldest turns are dropped (default: the length of the rows that the "
        "run was trained on; of a model from elsewhere, all that it reads)",
    )
    parser.add_argument(
        "--max_new_tokens",
        type=INTEGER,
        help=f"most tokens of one answer (default: {DEFAULT_NEW_TOKENS}, or a quarter of --context)",
    )
    add_sampling_flags(parser, temperature=0.3)
    parser.add_argument("--raw", action="store_true", help="continue each line as it is, without the chat template")
    return parser


def _chat(arguments: argparse.Namespace) -> None:
    if problems := sampling_problems(arguments):  # before anything is loaded
        raise ConfigError(*problems)
    talk(open_model(arguments), arguments)


def talk(opened: OpenModel, arguments: argparse.Namespace) -> None:
    """Answer the user line by line, until the end of the input.

    Raises:
        ConfigError: the numbers of tokens do not fit the model, or the input is not text.
    """
    conversation = _Conversation(opened, arguments)
    conversation.introduce()
    with _history():
        while (line := _read_line()) is not None:
            command = re.match(r"/[a-z]+(?!\S)", line)
            if command and not conversation.obey(command[0], line[command.end() :].strip()):
                return
            if line.strip() and not command:
                conversation.answer(line)


class _Conversation:
    """What was said so far, as much as the model reads of it."""

    def __init__(self, opened: OpenModel, arguments: argparse.Namespace) -> None:
        self._opened, self._arguments = opened, arguments
        self._raw = arguments.raw or not opened.source.knows_chat
        self._context = _context(opened, arguments)
        self._new_tokens = arguments.max_new_tokens or min(DEFAULT_NEW_TOKENS, max(1, self._context // 4))
        if not self._raw and self._new_tokens >= self._context:
            raise ConfigError(
                f"--max_new_tokens = {self._new_tokens}: leaves nothing of the {self._context} tokens of a "
                "conversation; lower it, or raise --context"
            )
        self._system, self._turns = arguments.system, 0
        self._messages: list[Message] = []
        self._told: set[str] = set()

    def introduce(self) -> None:
        """Say whom one talks to."""
        source = self._opened.source
        what = f"it remembers {self._context:,} tokens"
        if self._raw:
            what = "it continues each line"
            if not source.knows_chat:
                what = f"it was not trained on conversations, so {what}"
        ends = "/help lists the commands, Ctrl-D ends the chat"
        _note(f"{source.folder}, {source.args.num_parameters / 1e6:,.1f}M parameters; {what}; {ends}")

    def obey(self, name: str, text: str) -> bool:
        """Do what a command says; returns whether the chat goes on."""
        if name == "/help":
            for known, what in _COMMANDS.items():
                _note(f"{known:8} {what}")
        elif name == "/reset":
            self._forget()
            _note("A new conversation begins")
        elif name == "/system":
            self._forget()
            self._system = text or None
            _note(f"A new conversation begins, with {'this' if text else 'nothing'} said beforehand")
        elif name not in ("/quit", "/exit"):
            known = nearest(name, _COMMANDS)
            _note(f"{name}: unknown command{known}; /help lists them; a blank before it makes it text")
        return name not in ("/quit", "/exit")

    def answer(self, line: str) -> None:
        """Print what the model says to a line; Ctrl-C on a terminal stops it there."""
        self._turns += 1
        ids = self._raw_prompt(line) if self._raw else self._prompt(line)
        if not ids:
            print(flush=True)  # one answer a line, for a program that reads them
            return
        room = new_tokens(self._opened, self._arguments, [ids], ["what was said"]) if self._raw else self._room(ids)
        parts: list[str] = []

        def write(text: str) -> None:
            parts.append(text)
            printed(text)

        chosen = sampling(self._arguments, room)
        try:
            stream_text(self._opened, ids, chosen, chat=not self._arguments.raw, write=write, key=self._turns)
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            print(flush=True)
        said = "".join(parts)
        if not self._raw:
            self._messages = [*self._messages, {"role": "assistant", "content": said}] if said else self._messages[:-1]

    def _forget(self) -> None:
        self._messages, self._turns = [], 0
        self._told.discard("forgets")

    def _raw_prompt(self, line: str) -> list[int]:
        return prompt_ids(self._opened, line, raw=True, named=True)

    def _prompt(self, line: str) -> list[int]:
        """The conversation with this line, as far as it fits; empty, and told, if the line alone does not."""
        from titan_pt.components.tokenizer import name_in

        name = name_in(self._opened.source.tokenizer, line)
        if name is not None:
            self._tell("names", f"What was said holds {name!r}, which is read as text, as in every message")
        said: list[Message] = [*self._messages, {"role": "user", "content": line}]
        ids = self._ids(said)
        while len(said) > 1 and len(ids) > self._context - self._new_tokens:
            said = said[2:]
            ids = self._ids(said)
            self._tell(
                "forgets",
                f"The conversation is longer than {self._context:,} tokens with an answer: its oldest turn is "
                "forgotten, and from here on with each turn as many as it takes",
            )
        if self._room(ids) < 1:
            _note(
                f"What was said is {len(ids):,} tokens, and a conversation has {self._context:,}, with "
                f"{self._new_tokens:,} for an answer: it is not answered; shorten it"
            )
            return []
        self._messages = said
        return ids

    def _room(self, ids: list[int]) -> int:
        """Tokens left for an answer; all that are left where the user did not say how many it has."""
        left = self._context - len(ids)
        wished = self._arguments.max_new_tokens
        return (wished if left >= wished else 0) if wished else min(left, self._new_tokens)

    def _ids(self, messages: "list[Message]") -> list[int]:
        first: list[Message] = [{"role": "system", "content": self._system}] if self._system else []
        return prompt_ids(self._opened, [*first, *messages], raw=False, named=False)

    def _tell(self, what: str, text: str) -> None:
        if what not in self._told:
            self._told.add(what)
            _note(text)


def _note(text: str) -> None:
    """Tell the user something that the model did not say; the standard output holds its answers alone."""
    print(text, file=sys.stderr, flush=True)


def _context(opened: OpenModel, arguments: argparse.Namespace) -> int:
    """Most tokens of a conversation: --context, or as many as the model has seen in a row."""
    longest, config = opened.source.args.max_seq_len, opened.source.config
    if arguments.context is not None:
        if not 2 <= arguments.context <= longest:
            raise ConfigError(f"--context = {arguments.context}: must be from 2 to {longest}, which the model reads")
        return int(arguments.context)
    if config.get("model", {}).get("from_hf"):
        return longest
    return min(longest, config.get("training", {}).get("seq_len", longest))


def _read_line() -> str | None:
    """The user's next line; None at the end. Without a terminal nothing is asked."""
    is_asked = sys.stdin.isatty()
    try:
        if is_asked and sys.stdout.isatty():
            return input("> ")
        if is_asked:  # the answers go elsewhere, and the mark with them no one would see
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        return line.rstrip("\r\n") if line else None
    except EOFError:
        print(flush=True)
        return None
    except KeyboardInterrupt:
        if not is_asked:
            raise
        print(file=sys.stderr, flush=True)
        _note("Ctrl-D or /quit ends the chat")
        return ""
    except UnicodeDecodeError as error:
        raise ConfigError(f"the standard input is not {error.encoding}: {error.reason}; convert it") from None


@contextlib.contextmanager
def _history() -> Iterator[None]:
    """Keep the lines of a terminal for its arrow keys, in this chat and in later ones."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        yield
        return
    try:
        import readline
    except ImportError:  # a Python without it
        yield
        return
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    file = Path(state).expanduser() / "titan-pt" / "chat_history"
    with contextlib.suppress(OSError):
        readline.read_history_file(file)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # a home that cannot be written
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch(mode=0o600)
            readline.set_history_length(1000)
            readline.write_history_file(file)


if __name__ == "__main__":
    sys.exit(main())
