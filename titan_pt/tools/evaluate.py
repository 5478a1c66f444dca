"""`python -m titan_pt.tools.evaluate MODEL --tasks gsm8k,medqa`: accuracy on tasks, loss on texts."""

import argparse
import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from titan_pt.config.errors import ConfigError, one_of, shown
from titan_pt.run.tool_files import flag_path
from titan_pt.tools.command import INTEGER, ToolParser, run_tool, whole
from titan_pt.tools.model import (
    OpenModel,
    add_model_flags,
    add_sampling_flags,
    load_model,
    open_source,
    sampling,
    sampling_problems,
)

if TYPE_CHECKING:
    from titan_pt.distributed.world import World
    from titan_pt.evaluation.core_metric import CoreData
    from titan_pt.evaluation.eval_tasks import TaskRequest
    from titan_pt.hf.model_source import ModelSource

logger = logging.getLogger("titan_pt")

_DEFAULT_NEW_TOKENS = 384
_LEVELLED = ("arithmetic", "sorting")


def main(argv: list[str] | None = None) -> int:
    """Run the command with these arguments; returns the exit code."""
    return run_tool(lambda: _evaluate(_parser().parse_args(argv)))


def _parser() -> ToolParser:
    parser = ToolParser(prog="python -m titan_pt.tools.evaluate", description=__doc__)
    add_model_flags(parser)
    parser.add_argument(
        "--tasks", metavar="A,B", default="", help="gsm8k, medqa, arithmetic, sorting, reasoning_gym:<name>, core"
    )
    parser.add_argument(
        "--data",
        metavar="TASK=FILE",
        action="append",
        default=[],
        help="problems of a task (default: the hub's); core=DIR: the folder of DCLM's eval_data",
    )
    parser.add_argument(
        "--train_data", metavar="TASK=FILE", action="append", default=[], help="problems that --num_fewshot takes"
    )
    parser.add_argument(
        "--num_fewshot", type=whole(0, 1000), default=0, help="worked examples before a question (default: 0)"
    )
    parser.add_argument(
        "--on_bad_row",
        choices=["error", "skip"],
        default="error",
        help="a row whose own worked answer is graded wrong: stop, or leave it out (default: %(default)s)",
    )
    parser.add_argument(
        "--chat",
        nargs="?",
        const="true",
        choices=["auto", "true", "false"],
        default="auto",
        help="ask through the chat template, examples as turns (default: where the model was trained on conversations)",
    )
    parser.add_argument("--system_prompt", metavar="TEXT", help="the first turn, or what a plain prompt begins with")
    parser.add_argument("--level", type=whole(1), help="difficulty of arithmetic and sorting (default: 1)")
    parser.add_argument("--limit", type=whole(1), help="most problems of a task, always the same ones (default: all)")
    parser.add_argument(
        "--max_new_tokens",
        type=INTEGER,
        help=f"most tokens of an answer (default: {_DEFAULT_NEW_TOKENS}, or half of what the model reads)",
    )
    _add_turn_flags(parser)
    parser.add_argument(
        "--samples",
        type=INTEGER,
        default=0,
        help="sampled answers to each problem, for pass@k (default: 0)",
    )
    parser.add_argument("--k", metavar="K,K", help="of pass@k (default: 1 and --samples)")
    add_sampling_flags(parser, temperature=1.0)
    _add_text_flags(parser)
    parser.add_argument(
        "--max_rows", type=INTEGER, default=256, help="most answers generated together (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _add_turn_flags(parser: ToolParser) -> None:
    parser.add_argument(
        "--max_turns", type=whole(1), default=8, help="most turns of a task that is played in turns (default: 8)"
    )
    parser.add_argument(
        "--max_episode_tokens",
        type=whole(1),
        help="most tokens of such a task (default: --max_turns x --max_new_tokens, in 3/4 of what the model reads)",
    )


def _add_text_flags(parser: ToolParser) -> None:
    parser.add_argument("--text", metavar="FILES", help="loss and bits per byte of these texts: a glob of local files")
    parser.add_argument("--seq_len", type=whole(1), help="tokens of a row of --text (default: as in training, or 2048)")
    parser.add_argument(
        "--precision",
        choices=["float32", "bfloat16", "float16"],
        help="type to compute --text in (default: --dtype, or that of the run's validation)",
    )
    parser.add_argument(
        "--document_mask",
        nargs="?",
        const="true",
        choices=["true", "false"],
        help="whether documents of --text that share a row see each other (default: as in training)",
    )


def _evaluate(arguments: argparse.Namespace) -> None:
    from titan_pt.distributed.lone_world import lone_world

    if isinstance(getattr(sys.stdout, "name", None), int):  # what `open_console` put in its place
        raise ConfigError("the standard output is closed, and the result would be lost; send it to a file")
    requests, ks = _tasks(arguments), _check(arguments)
    source = open_source(arguments)
    result: dict[str, Any] = {"checkpoint": str(source.folder), "facts": dict(source.facts)}
    if requests:
        with lone_world() as world:
            opened = load_model(source, arguments)
            result["tasks"] = _measure_tasks(opened, arguments, requests, ks, world)
            del opened
    if arguments.text:
        result["text"] = _measure_text(source, arguments)
    print(json.dumps(result, indent=2, ensure_ascii=False) if arguments.json else report(result))


# -- arguments --------------------------------------------------------------------------------------------------------


def _check(arguments: argparse.Namespace) -> tuple[int, ...]:
    """The values of k of pass@k; checks what sampling depends on.

    Raises:
        ConfigError: names every number that is out of range.
    """
    problems = sampling_problems(arguments)
    if arguments.samples > 0 and arguments.temperature == 0:
        problems.append("--temperature = 0: all --samples would be the greedy answer; it is evaluated anyway")
    if arguments.tasks.strip() == "core":
        given = [name for name in ("samples", "max_new_tokens", "k") if getattr(arguments, name)]
        problems += [f"--{name}: has no effect on core, which generates no text; leave it out" for name in given]
    ks = _ks(arguments, problems)
    if problems:
        raise ConfigError(*problems)
    return ks


def _ks(arguments: argparse.Namespace, problems: list[str]) -> tuple[int, ...]:
    if arguments.k is None:
        return tuple(sorted({1, arguments.samples})) if arguments.samples > 0 else ()
    words = [word.strip() for word in arguments.k.split(",")]
    ks = tuple(sorted({int(word) for word in words if word.isascii() and word.isdigit() and len(word) < 10}))
    if len(ks) != len(set(words)) or not all(1 <= k <= arguments.samples for k in ks):
        problems.append(
            f"--k = {shown(arguments.k)}: want numbers from 1 to --samples = {arguments.samples}, such as 1,8"
        )
    return ks


def _tasks(arguments: argparse.Namespace) -> list["TaskRequest"]:
    """The requested tasks.

    Raises:
        ConfigError: no task and no text, a task twice, or files of a task that is not requested.
    """
    from titan_pt.evaluation.eval_tasks import TaskRequest

    names = [name.strip() for name in arguments.tasks.split(",") if name.strip()]
    if not names and not arguments.text:
        raise ConfigError("nothing to evaluate: give --tasks, such as gsm8k,medqa,arithmetic, or --text FILES")
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"--tasks: {name!r} is given twice")
    data, train_data = _files("data", arguments, names), _files("train_data", arguments, names)
    if train_data and not arguments.num_fewshot:
        raise ConfigError("--train_data: examples are taken from it; give --num_fewshot, such as 5")
    if arguments.level is not None and set(names).isdisjoint(_LEVELLED):
        raise ConfigError(f"--level: is of {one_of(_LEVELLED)}, none of which is in --tasks")
    return [
        TaskRequest(
            name,
            path=data.get(name),
            train_path=train_data.get(name),
            level=arguments.level if name in _LEVELLED else None,
            num_fewshot=arguments.num_fewshot,
            on_bad_row=arguments.on_bad_row,
            chat="auto" if arguments.chat == "auto" else arguments.chat == "true",
            system_prompt=arguments.system_prompt,
        )
        for name in names
    ]


def _files(flag: str, arguments: argparse.Namespace, names: Sequence[str]) -> dict[str, str]:
    files: dict[str, str] = {}
    for text in getattr(arguments, flag):
        name, equals, file = text.partition("=")
        if not equals or not file:
            raise ConfigError(f"--{flag} = {text!r}: want TASK=FILE, such as gsm8k=test.jsonl")
        if name not in names:
            raise ConfigError(f"--{flag} = {text!r}: {name!r} is not in --tasks; there are {one_of(names)}")
        if name in files:
            raise ConfigError(f"--{flag}: {name!r} is given twice; one glob can name several files")
        flag_path(f"--{flag} {name}", file)  # the task replaces what is to be replaced itself
        files[name] = file
    return files


# -- measuring --------------------------------------------------------------------------------------------------------


def _measure_tasks(
    opened: OpenModel,
    arguments: argparse.Namespace,
    requests: Sequence["TaskRequest"],
    ks: tuple[int, ...],
    world: "World",
) -> dict[str, Any]:
    from titan_pt.evaluation.core_metric import CORE, open_core
    from titan_pt.evaluation.eval_tasks import open_eval_task
    from titan_pt.evaluation.task_evaluator import PassAtK, build_task_evaluator

    tokenizer, longest = opened.source.tokenizer, opened.source.args.max_seq_len
    new_tokens = arguments.max_new_tokens or min(_DEFAULT_NEW_TOKENS, longest // 2)
    talks = opened.source.knows_chat
    asked = [request for request in requests if request.name != CORE]
    tasks = [open_eval_task(request, arguments.seed, "--tasks", knows_chat=talks) for request in asked]
    core = [open_core(request, arguments.limit, "--tasks") for request in requests if request.name == CORE]
    if tokenizer.chat_template is None and any(task.chat for task in tasks):
        logger.warning("The checkpoint has no chat template of its own; titan_pt's is used")
    engine = opened.engine(max_rows=arguments.max_rows)
    evaluate = build_task_evaluator(
        tasks,
        opened.model,
        engine,
        tokenizer,
        world,
        new_tokens,
        episode_tokens=arguments.max_episode_tokens,
        max_turns=arguments.max_turns,
    )
    pass_at_k = PassAtK(sampling(arguments, new_tokens), arguments.samples, ks) if arguments.samples else None
    limit = arguments.limit or max((len(task.evaluation) for task in tasks), default=0)
    results = {}
    for t, task in enumerate(tasks):
        start = time.perf_counter()
        result = evaluate(t, limit, new_tokens, pass_at_k)
        results[task.name] = {
            "problems": result.problems,
            "num_fewshot": arguments.num_fewshot,
            "chat": task.chat,
            **result.values,
            "intervals": {name: list(interval) for name, interval in result.intervals.items()},
            "seconds": round(time.perf_counter() - start, 3),
        }
    for data in core:
        results[CORE] = _measure_core(data, opened, world)
    return results


def _measure_core(data: "CoreData", opened: OpenModel, world: "World") -> dict[str, Any]:
    from titan_pt.evaluation.core_metric import CoreEvaluator, centred, missing_tasks

    start = time.perf_counter()
    result = CoreEvaluator(data, opened.model, opened.source.tokenizer, world)()
    tasks = {}
    for task, problems in data.items():
        key = f"{task.name}/accuracy"
        accuracy = result.values[key]
        tasks[task.name] = {
            "problems": len(problems),
            "num_fewshot": task.examples,
            "accuracy": accuracy,
            "centered": centred(task, accuracy),
            "interval": list(result.intervals[key]),
        }
    return {
        "problems": result.problems,
        "core_metric": result.values["core_metric"],
        "interval": list(result.intervals["core_metric"]),
        "num_tasks": len(tasks),
        "missing": missing_tasks(data),
        "tasks": tasks,
        "seconds": round(time.perf_counter() - start, 3),
    }


def _measure_text(source: "ModelSource", arguments: argparse.Namespace) -> dict[str, Any]:
    from titan_pt.tools.run_text import TextOptions, measure_text

    found, options = measure_text(
        source,
        str(flag_path("--text", arguments.text)),
        TextOptions.of_run(source).changed(
            seq_len=arguments.seq_len,
            document_mask=None if arguments.document_mask is None else arguments.document_mask == "true",
            precision=arguments.precision or arguments.dtype,
        ),
        lambda precision: load_model(source, arguments, precision).model,
    )
    return {
        "files": arguments.text,
        "seq_len": options.seq_len,
        "document_mask": options.document_mask,
        "precision": options.precision,
        "tokens": found.tokens,
        "bytes": round(found.num_bytes),
        "loss": found.loss,
        "perplexity": found.perplexity,
        "bits_per_byte": found.bits_per_byte,
    }


# -- printing ---------------------------------------------------------------------------------------------------------


def report(result: Mapping[str, Any]) -> str:
    """The results as text for the console."""
    from titan_pt.tasks.task import how_asked

    lines = [result["checkpoint"]]
    for name, task in result.get("tasks", {}).items():
        if "core_metric" in task:
            lines += _core_lines(name, task)
            continue
        shots = f", {task['num_fewshot']} examples" if task["num_fewshot"] else ""
        lines.append(
            f"{name}: {task['problems']:,} problems{shots}, {how_asked(task['chat'])}, {task['seconds']:.1f} s"
        )
        for key, value in task.items():
            if key in task["intervals"]:
                low, high = task["intervals"][key]
                lines.append(f"  {key:24} {value:7.2%}  95% interval {low:.2%} to {high:.2%}")
            elif isinstance(value, float) and key != "seconds":
                lines.append(f"  {key:24} {value:7.2%}")
    if "text" in result:
        text = result["text"]
        mask = "documents apart" if text["document_mask"] else "documents see each other"
        lines.append(
            f"{text['files']}: {text['tokens']:,} tokens, {text['bytes']:,} bytes, rows of {text['seq_len']}, {mask}, "
            f"{text['precision']}"
        )
        lines += [f"  {key:24} {text[key]:8.4f}" for key in ("loss", "perplexity", "bits_per_byte")]
    return "\n".join(lines)


def _core_lines(name: str, found: Mapping[str, Any]) -> list[str]:
    total, missing = found["num_tasks"] + len(found["missing"]), found["missing"]
    low, high = found["interval"]
    lines = [
        f"{name}: {found['num_tasks']} of {total} tasks, {found['problems']:,} problems, {found['seconds']:.1f} s",
        f"  {'core_metric':34} {found['core_metric']:7.4f}  95% interval {low:.4f} to {high:.4f}",
    ]
    for label, task in found["tasks"].items():
        lines.append(
            f"  {label:34} {task['centered']:7.4f}  accuracy {task['accuracy']:.2%} of {task['problems']:,} problems, "
            f"{task['num_fewshot']} examples"
        )
    if missing:
        lines.append(f"  without {', '.join(missing)}: not comparable with the whole metric")
    return lines


if __name__ == "__main__":
    sys.exit(main())
