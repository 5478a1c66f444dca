"""`python -m titan_pt.tools.generate MODEL [--prompt "..."]`: text from any model, or a chat with it."""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import IO, TYPE_CHECKING

from titan_pt.config.errors import ConfigError
from titan_pt.run.log import logger
from titan_pt.run.tool_files import flag_path, read_lines
from titan_pt.tools.command import INTEGER, ToolParser, run_tool
from titan_pt.tools.model import OpenModel, add_model_flags, add_sampling_flags, open_model, sampling, sampling_problems
from titan_pt.tools.texts import DEFAULT_NEW_TOKENS, new_tokens, prompt_ids, stream_text, text_of

if TYPE_CHECKING:
    from titan_pt.hf.chat import Message


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
        help=f"most tokens of one text (default: {DEFAULT_NEW_TOKENS}, or what the model has room for)",
    )
    add_sampling_flags(parser, temperature=0.8)
    parser.add_argument("--num_samples", type=INTEGER, default=1, help="texts for each prompt (default: %(default)s)")
    parser.add_argument(
        "--max_rows", type=INTEGER, default=256, help="most texts generated together (default: %(default)s)"
    )
    parser.add_argument("--raw", action="store_true", help="continue the text as it is, without the chat template")
    parser.set_defaults(system=None, context=None)  # of a chat
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
        from titan_pt.tools.chat import talk

        if arguments.num_samples > 1:
            raise ConfigError(f"--num_samples = {arguments.num_samples}: a chat has one answer; give --prompt")
        talk(opened, arguments)


# -- one prompt -------------------------------------------------------------------------------------------------------


def _answer(opened: OpenModel, arguments: argparse.Namespace) -> None:
    """Print the texts for --prompt, separated by blank lines; a single one is printed while it grows."""
    ids = prompt_ids(opened, arguments.prompt, raw=arguments.raw, named=True)
    chosen = sampling(arguments, new_tokens(opened, arguments, [ids], ["--prompt"]))
    if arguments.num_samples == 1:
        stream_text(opened, ids, chosen, chat=not arguments.raw)
        return
    engine = opened.engine(max_rows=arguments.max_rows, chat=not arguments.raw)
    completions = engine.generate([ids], chosen, arguments.num_samples)
    print("\n\n".join(text_of(opened, completion) for completion in completions))


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
    from titan_pt.tasks.task import is_message

    fields = row if isinstance(row, dict) else {}
    prompt, messages = fields.get("prompt"), fields.get("messages")
    if isinstance(prompt, str) and prompt:
        return prompt
    if isinstance(messages, list) and messages and all(isinstance(message, dict) for message in messages):
        messages = [{**message, "content": _content(message, where)} for message in messages]
        if all(map(is_message, messages)):
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


def _batch(opened: OpenModel, arguments: argparse.Namespace, prompts: Sequence["str | list[Message]"]) -> None:
    """Write a line of JSON for each prompt, in order: {prompt or messages, completions, finish_reasons}."""
    _note_names(opened, arguments, prompts)
    ids = [prompt_ids(opened, prompt, raw=arguments.raw, named=arguments.special_tokens) for prompt in prompts]
    names = [f"{arguments.prompts_file}, prompt {number}" for number in range(1, len(ids) + 1)]
    chosen = sampling(arguments, new_tokens(opened, arguments, ids, names))
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
                    "completions": [text_of(opened, completion) for completion in own],
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


if __name__ == "__main__":
    sys.exit(main())
