"""`python -m titan_pt.tools.harness MODEL --tasks hellaswag`: tasks of lm-evaluation-harness on any model."""

import argparse
import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from titan_pt.config.errors import ConfigError
from titan_pt.run.exit_codes import GaveUp
from titan_pt.run.tool_files import flag_path
from titan_pt.tools.command import INTEGER, ToolParser, run_tool, whole
from titan_pt.tools.model import add_model_flags, open_model, sampling_problems


def main(argv: list[str] | None = None) -> int:
    """Run the command with these arguments; returns the exit code."""
    return run_tool(lambda: _run(_parser().parse_args(argv)))


def _parser() -> ToolParser:
    parser = ToolParser(prog="python -m titan_pt.tools.harness", description=__doc__)
    add_model_flags(parser)
    parser.add_argument(
        "--tasks", required=True, metavar="A,B", help="names of its tasks, or of those in --include_path"
    )
    parser.add_argument("--include_path", metavar="DIR", help="a folder of tasks of your own (YAML)")
    parser.add_argument(
        "--apply_chat_template",
        action="store_true",
        help="ask through the model's chat template, examples as earlier turns (default: as plain text)",
    )
    parser.add_argument(
        "--num_fewshot", type=whole(0, 1000), help="examples before a question (default: the task's own)"
    )
    parser.add_argument("--limit", type=whole(1), help="most questions of a task (default: all)")
    parser.add_argument(
        "--max_rows", type=INTEGER, default=256, help="most texts generated together (default: %(default)s)"
    )
    parser.add_argument("--seed", type=INTEGER, default=42, help="of sampled answers (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    if problems := sampling_problems(arguments):
        raise ConfigError(*problems)
    given = arguments.include_path
    folder = None if given is None else str(flag_path("--include_path", given))
    if folder is not None and not os.path.isdir(folder):
        raise ConfigError(f"--include_path = {given!r}: no such folder")
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager

        from titan_pt.evaluation.harness import HarnessModel
    except ImportError as error:
        raise ConfigError(_missing(error)) from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with _naming(f"--include_path = {folder!r}"):
        manager = TaskManager(include_path=folder)
    names = [name.strip() for name in arguments.tasks.split(",") if name.strip()]
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown or not names:
        raise ConfigError(f"--tasks = {arguments.tasks!r}: the harness does not know {', '.join(unknown) or 'no task'}")
    opened = open_model(arguments)
    engine, chats = opened.engine(max_rows=arguments.max_rows), arguments.apply_chat_template
    model = HarnessModel(opened.model, engine, opened.source.tokenizer, arguments.seed, chats=chats)
    values: dict[str, dict[str, float]] = {}
    for name in names:  # one by one, so that a failure names its task
        with _naming(f"--tasks: {name!r}", arguments.num_fewshot):
            results = lm_eval.simple_evaluate(
                model=model,
                tasks=[name],
                num_fewshot=arguments.num_fewshot,
                limit=arguments.limit,
                apply_chat_template=chats,
                fewshot_as_multiturn=chats,
                task_manager=manager,
            )
            values |= {part: _numbers(results["results"][part]) for part in results["results"]}
    print(json.dumps(values, indent=2) if arguments.json else _report(values))


@contextlib.contextmanager
def _naming(what: str, num_fewshot: int | None = None) -> Iterator[None]:
    """Name what the harness was at in whatever it raises: a ConfigError, or an error of the system, such as a hub's."""
    try:
        yield
    except (ConfigError, GaveUp, MemoryError):
        raise
    except OSError as error:
        raise OSError(f"{what}: lm-evaluation-harness failed: {type(error).__name__}: {error}") from error
    except Exception as error:  # a task's files, data sets and metrics can fail in any way
        text = f"{type(error).__name__}: {' '.join(str(error).split()) or 'no message'}"
        few = f" (--num_fewshot = {num_fewshot}: the task may have fewer examples; lower it)" if num_fewshot else ""
        raise ConfigError(f"{what}: lm-evaluation-harness failed: {text}{few}") from error


def _missing(error: ImportError) -> str:
    """What to install where an import of the harness failed."""
    try:
        installed = version("lm-eval")
    except PackageNotFoundError:
        return f"{error}; pip install 'titan-pt[eval]' brings lm-evaluation-harness"
    return f"lm-eval {installed} is installed and lacks what is imported ({error}); pip install 'lm-eval>=0.4.10,<0.5'"


def _numbers(result: dict[str, Any]) -> dict[str, float]:
    """The numbers of one task's results, without the suffix ",none" of their names."""
    return {key.removesuffix(",none"): value for key, value in result.items() if isinstance(value, float)}


def _report(values: dict[str, dict[str, float]]) -> str:
    return "\n".join(f"{name}: {key} {value:.4f}" for name, numbers in values.items() for key, value in numbers.items())


if __name__ == "__main__":
    sys.exit(main())
