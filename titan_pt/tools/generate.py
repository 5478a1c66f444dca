"""`python -m titan_pt.tools.generate --checkpoint C [--prompt "..."]`: text from any model, or a chat with it."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import IO, TYPE_CHECKING

from titan_pt.config.errors import ConfigError
from titan_pt.run.log import logger
from titan_pt.run.tool_files import flag_path, read_lines
from titan_pt.tools.command import INTEGER, ToolParser, run_tool
from titan_pt.tools.model import OpenModel, add_model_flags, add_sampling_flags, open_model, sampling, sampling_problems

if TYPE_CHECKING:
    from titan_pt.components.tokenizer import Tokenizer
    from titan_pt.generation.engine import Completion
    from titan_pt.generation.sampling import Sampling
    from titan_pt.hf.chat import Message

_DEFAULT_NEW_TOKENS = 256


def main(argv: list[str] | None = None) -> int:
    """Generate as the arguments say; returns the exit code."""
    return run_tool(lambda: _generate(_parser().parse_args(argv)))


def _parser() -> ToolParser:
    parser = ToolParser(prog="python -m titan_pt.tools.generate", description=__doc__)
    add_model_flags(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--prompt", metavar="TEXT", help="what to answer or continue; without it: a chat")
    what.add_argument(
        "--prompts_file",
        metavar="FILE",
        help="one prompt a line (.txt), or rows with `prompt` or `messages` (.jsonl, .parquet): one JSON object each",
    )
    parser.add_argument(
        "--special_tokens",
        action="store_true",
        help="read names of special tokens in --prompts_file as these tokens, as in --prompt; without it they are text",
    )
    parser.add_argument("--output", metavar="FILE", help="where --prompts_file writes (default: the standard output)")
    parser.add_argument(
        "--max_new_tokens",
        type=INTEGER,
        help=f"most tokens of one text (default: {_DEFAULT_NEW_TOKENS}, or what the model has room for)",
    )
    add_sampling_flags(parser, temperature=0.8)
    parser.add_argument("--num_samples", type=INTEGER, default=1, help="texts for each prompt (default: %(default)s)")
    parser.add_argument(
        "--max_rows", type=INTEGER, default=256, help="most texts generated together (default: %(default)s)"
    )
    parser.add_argument("--raw", action="store_true", help="continue the text as it is, without the chat template")
    return parser


def _generate(arguments: argparse.Namespace) -> None:
    if problems := sampling_problems(arguments):  # before anything is loaded
        raise ConfigError(*problems)
    if arguments.output is not None and not arguments.prompts_file:
        raise ConfigError("--output: is for --prompts_file; the text of --prompt goes to the standard output")
    if arguments.special_tokens and not arguments.prompts_file:
        raise ConfigError("--special_tokens: is for --prompts_file; names in --prompt are tokens, in a chat text")
    records = read_prompts(arguments.prompts_file) if arguments.prompts_file is not None else []
    _check_output(arguments.output)
    opened = open_model(arguments)
    if arguments.prompts_file is not None:
        _batch(opened, arguments, records)
    elif arguments.prompt is not None:
        _answer(opened, arguments)
    else:
        _chat(opened, arguments)


# -- one prompt -------------------------------------------------------------------------------------------------------


def _answer(opened: OpenModel, arguments: argparse.Namespace) -> None:
    """Print the texts for --prompt, separated by blank lines; a single one is printed while it grows."""
    ids = _prompt_ids(opened, arguments.prompt, raw=arguments.raw, named=True)
    chosen = sampling(arguments, _new_tokens(opened, arguments, [ids], ["--prompt"]))
    if arguments.num_samples == 1:
        _stream(opened, ids, chosen, chat=not arguments.raw)
        return
    engine = opened.engine(max_rows=arguments.max_rows, chat=not arguments.raw)
    completions = engine.generate([ids], chosen, arguments.num_samples)
    print("\n\n".join(_text(opened, completion) for completion in completions))


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


def _stream(opened: OpenModel, ids: Sequence[int], chosen: "Sampling", *, chat: bool) -> str:
    """Generate one text, print it while it grows, and return it."""

    def write(text: str) -> None:
        print(text, end="", flush=True)

    stream = TextStream(opened.source.tokenizer, opened.stop_ids(chat=chat), write)
    (completion,) = opened.engine(stride=1, chat=chat).generate([ids], chosen, 1, watch=stream)
    stream([completion.token_ids], final=True)
    print(flush=True)
    return _text(opened, completion)


# -- a file of prompts ------------------------------------------------------------------------------------------------


def read_prompts(file: str) -> list["str | list[Message]"]:
    """Read the prompts of a file: texts, or conversations.

    Raises:
        ConfigError: the file cannot be read, or a row has neither.
    """
    from titan_pt.data.sources.rows import read_rows

    path = flag_path("--prompts_file", file)
    if not path.is_file():
        raise ConfigError(f"--prompts_file = {file!r}: no such file")
    if path.suffix == ".txt":
        prompts: list[str | list[Message]] = [line for line in read_lines(path) if line.strip()]
    else:
        prompts = [_prompt_of(row, f"{file}, {place}") for place, row in read_rows(str(path))]
    if not prompts:
        raise ConfigError(f"--prompts_file = {file!r}: holds no prompts")
    return prompts


def _prompt_of(row: object, where: str) -> "str | list[Message]":
    fields = row if isinstance(row, dict) else {}
    prompt, messages = fields.get("prompt"), fields.get("messages")
    if isinstance(prompt, str) and prompt:
        return prompt
    if isinstance(messages, list) and messages and all(isinstance(message, dict) for message in messages):
        messages = [{**message, "content": _content(message, where)} for message in messages]
        if all(map(_is_message, messages)):
            return messages
    raise ConfigError(
        f'{where}: no prompt; want {{"prompt": "..."}} or {{"messages": [{{"role": "user", "content": "..."}}]}}'
    )


def _content(message: dict[str, object], where: str) -> object:
    from titan_pt.hf.chat import joined_parts

    try:
        return joined_parts(message.get("content"), "a message")
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(name), str) for name in ("role", "content"))


def _batch(opened: OpenModel, arguments: argparse.Namespace, prompts: Sequence["str | list[Message]"]) -> None:
    """Write a line of JSON for each prompt, in order: {prompt or messages, completions, finish_reasons}."""
    _note_names(opened, arguments, prompts)
    ids = [_prompt_ids(opened, prompt, raw=arguments.raw, named=arguments.special_tokens) for prompt in prompts]
    names = [f"{arguments.prompts_file}, prompt {number}" for number in range(1, len(ids) + 1)]
    chosen = sampling(arguments, _new_tokens(opened, arguments, ids, names))
    engine, size = (
        opened.engine(max_rows=arguments.max_rows, chat=not arguments.raw),
        max(1, arguments.max_rows // arguments.num_samples),
    )
    with _open_output(arguments.output) as output:
        for start in range(0, len(ids), size):
            some = range(start, min(start + size, len(ids)))
            completions = engine.generate([ids[i] for i in some], chosen, arguments.num_samples, some)
            for place, i in enumerate(some):
                own = completions[place * arguments.num_samples : (place + 1) * arguments.num_samples]
                row = {
                    "prompt" if isinstance(prompts[i], str) else "messages": prompts[i],
                    "completions": [_text(opened, completion) for completion in own],
                    "finish_reasons": [completion.finish_reason for completion in own],
                }
                print(json.dumps(row, ensure_ascii=False), file=output, flush=True)


def _check_output(file: str | None) -> None:
    """Raise a ConfigError before a model is loaded where the output cannot be written."""
    if file is None:
        return
    path = flag_path("--output", file)
    if path.is_dir() or not path.parent.is_dir():
        raise ConfigError(f"--output = {file!r}: {'is a folder' if path.is_dir() else 'is in no folder'}; name a file")


def _note_names(opened: OpenModel, arguments: argparse.Namespace, prompts: Sequence["str | Sequence[Message]"]) -> None:
    """Log once how names of special tokens in --prompts_file are read."""
    from titan_pt.components.tokenizer import name_in

    if arguments.special_tokens:
        logger.info("--special_tokens: names of special tokens in the prompts are these tokens")
        return
    for number, prompt in enumerate(prompts, 1):
        text = prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)
        name = name_in(opened.source.tokenizer, text)
        if name is not None:
            logger.warning(
                f"{arguments.prompts_file}, prompt {number}: holds {name!r}, which is read as text; --special_tokens "
                "reads names of special tokens as these tokens"
            )
            return


def _open_output(file: str | None) -> AbstractContextManager[IO[str]]:
    return flag_path("--output", file).open("w", encoding="utf-8") if file is not None else nullcontext(sys.stdout)


# -- a chat -----------------------------------------------------------------------------------------------------------


def _chat(opened: OpenModel, arguments: argparse.Namespace) -> None:
    """Answer the user line by line, until the end of the input or Ctrl-C."""
    from titan_pt.components.tokenizer import name_in

    raw = arguments.raw or not opened.source.knows_chat
    if arguments.num_samples > 1:
        raise ConfigError(f"--num_samples = {arguments.num_samples}: a chat has one answer; give --prompt")
    what = "it continues each line" if raw else "Ctrl-D ends the chat"
    logger.info(f"{opened.source.folder}, {opened.source.args.num_parameters / 1e6:,.1f}M parameters; {what}")
    messages: list[Message] = []
    told = raw
    while (line := _read_line()) is not None:
        if not line.strip():
            continue
        name = None if told else name_in(opened.source.tokenizer, line)
        if name is not None:
            told = True
            logger.warning(f"What was said holds {name!r}, which is read as text, as in every message")
        if raw:
            ids = _prompt_ids(opened, line, raw=True, named=True)
        else:
            messages = _fitting(opened, [*messages, {"role": "user", "content": line}], arguments.max_new_tokens or 1)
            ids = _prompt_ids(opened, messages, raw=False, named=False)
        chosen = sampling(arguments, _new_tokens(opened, arguments, [ids], ["what was said"]))
        try:
            answer = _stream(opened, ids, chosen, chat=not arguments.raw)
        except KeyboardInterrupt:
            print(flush=True)
            answer = ""
        if not raw:
            messages.append({"role": "assistant", "content": answer})


def _read_line() -> str | None:
    """Read the user's next line; None at the end. The prompt mark goes to stderr, and only to a terminal."""
    if sys.stdin.isatty():
        print("> ", end="", file=sys.stderr, flush=True)
    try:
        line = sys.stdin.readline()
    except KeyboardInterrupt:
        line = ""
    except UnicodeDecodeError as error:
        raise ConfigError(f"the standard input is not {error.encoding}: {error.reason}; convert it") from None
    return line.rstrip("\n") if line else None


def _fitting(opened: OpenModel, messages: "list[Message]", new_tokens: int) -> "list[Message]":
    """Drop the oldest turns of a conversation until it and an answer fit into the model's context."""
    from titan_pt.hf.chat import chat_tokens

    longest = opened.source.args.max_seq_len - new_tokens
    while len(messages) > 1 and len(chat_tokens(opened.source.tokenizer, messages)) > longest:
        messages = messages[2:]
        logger.warning("The conversation is longer than the model reads: its oldest turn is forgotten")
    return messages


# -- for all three ----------------------------------------------------------------------------------------------------


def _prompt_ids(opened: OpenModel, prompt: "str | Sequence[Message]", *, raw: bool, named: bool) -> list[int]:
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
    return prompt_tokens(tokenizer, prompt, named=named) or [
        tokenizer.eos_id
    ]  # nothing to continue: a document from its beginning


def _new_tokens(
    opened: OpenModel, arguments: argparse.Namespace, prompts: Sequence[Sequence[int]], names: Sequence[str]
) -> int:
    """Return --max_new_tokens, or by default what the model has room for after the longest prompt.

    Raises:
        ConfigError: there is no room.
    """
    longest = max(range(len(prompts)), key=lambda i: len(prompts[i]))
    room = opened.source.args.max_seq_len - len(prompts[longest])
    wished = arguments.max_new_tokens or min(_DEFAULT_NEW_TOKENS, max(room, 1))
    if wished > room:
        fix = f"lower --max_new_tokens to {room} or less, or shorten it" if room > 0 else "shorten it"
        raise ConfigError(
            f"{names[longest]}: {len(prompts[longest])} tokens and --max_new_tokens = {wished} are more than the "
            f"model reads, {opened.source.args.max_seq_len}; {fix}"
        )
    return wished


def _text(opened: OpenModel, completion: "Completion") -> str:
    ids = completion.token_ids
    return opened.source.tokenizer.decode(ids if completion.finish_reason == "length" else ids[:-1])


if __name__ == "__main__":
    sys.exit(main())
